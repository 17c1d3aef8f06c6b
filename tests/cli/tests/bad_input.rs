//! Every refusal names the thing and the way out, ends with the exit code for usage, and leaves nothing behind.

use std::fs;
use std::io::Write;

use gvmm_cli_tests::{Bench, image};

/// Prepares a machine and checks that it is refused with this text on the last line.
fn refused(bench: &Bench, arguments: &str, text: &str) {
    let answer = bench.prepare(arguments);
    assert_eq!(answer.code, 2, "{arguments}: {answer:?}");
    let last = answer.err.lines().last().unwrap_or_default();
    assert!(last.starts_with(&format!("gvmm: {text}")), "{arguments}: {last}");
    assert!(!bench.path("tree.dtb").exists(), "{arguments}: a device tree was written all the same");
}

#[test]
fn a_good_machine_is_prepared() {
    let bench = Bench::new();
    let answer = bench.prepare("--kernel Image --device virtio_blk,disk=disk.img");
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    assert_eq!(fs::read(bench.path("tree.dtb")).unwrap()[..4], [0xd0, 0x0d, 0xfe, 0xed]);
}

#[test]
fn numbers_out_of_range_are_refused() {
    let bench = Bench::new();
    for (arguments, text) in [
        ("--memory 0", "guest memory of 0 bytes: give at least 2 MiB"),
        ("--memory 3M", "guest memory 3M is not a multiple of 2M: use 4M"),
        ("--memory 1048576G", "guest memory of 1073741824 MiB is more than the "),
        ("--memory 2M", "the kernel Image "),
        ("--cpus 0", "--cpus 0: a machine needs at least one vCPU"),
        ("--cpus 1000", "--cpus 1000: at most 512 vCPUs are possible"),
    ] {
        let kernel = if arguments.contains("2M") && !arguments.contains("3M") { 4 << 20 } else { 4096 };
        fs::write(bench.path("Image"), image(kernel)).unwrap();
        refused(&bench, &format!("--kernel Image {arguments}"), text);
    }
}

#[test]
fn kernels_that_are_none_are_refused() {
    let bench = Bench::new();
    fs::write(bench.path("empty"), "").unwrap();
    fs::write(bench.path("text"), "This is no kernel.\n".repeat(100)).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let noise: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    gzip.write_all(&[image(4096), noise].concat()).unwrap();
    let gzip = gzip.finish().unwrap();
    fs::write(bench.path("cut.gz"), &gzip[..gzip.len() / 2]).unwrap();
    let mut other = image(4096);
    other[24] = 1;
    fs::write(bench.path("big-endian"), other).unwrap();
    for (kernel, text) in [
        ("nothing", "cannot open the kernel nothing: No such file or directory"),
        ("empty", "the kernel empty is empty: was it copied completely?"),
        ("text", "text is not an arm64 kernel Image"),
        ("/bin/true", "/bin/true is not an arm64 kernel Image but an ELF file"),
        ("cut.gz", "the kernel cut.gz"),
        ("big-endian", "the kernel big-endian"),
    ] {
        refused(&bench, &format!("--kernel {kernel}"), text);
    }
    refused(&bench, "", "--kernel is missing: give a Linux arm64 Image");
}

#[test]
fn initrds_that_cannot_be_loaded_are_refused() {
    let bench = Bench::new();
    fs::write(bench.path("large"), vec![1; 8 << 20]).unwrap();
    refused(
        &bench,
        "--kernel Image --initrd nothing",
        "cannot open the initrd nothing: No such file or directory",
    );
    refused(&bench, "--kernel Image --memory 8M --initrd large", "the initrd large");
}

#[test]
fn devices_that_cannot_be_are_refused() {
    let bench = Bench::new();
    for (device, text) in [
        ("", "the plugin is missing"),
        ("virtio_bk", "plugin virtio_bk: virtio_bk.so is in none of "),
        ("/nowhere/x.so", "plugin /nowhere/x.so: no such file"),
        ("virtio_blk", "device virtio_blk: option 'disk' is missing: add disk=PATH"),
        ("virtio_blk,dsk=disk.img", "device virtio_blk: unknown option 'dsk'; did you mean 'disk'?"),
        ("virtio_blk,disk=disk.img,readonly=1", "device virtio_blk: option 'readonly': '1' is not on or off"),
        ("virtio_blk,disk=disk.img,disk=disk.img", "device virtio_blk: option 'disk' is given twice"),
        ("pl031,speed=1", "device pl031: unknown option 'speed'; this device takes no options"),
    ] {
        if device.is_empty() {
            continue;
        }
        refused(&bench, &format!("--kernel Image --device {device}"), text);
    }
    refused(
        &bench,
        "--kernel Image --device virtio_blk,disk=disk.img,id=a --device pl031,id=a",
        "device id 'a' is used twice: give each device an id of its own",
    );
}

#[test]
fn devices_that_have_no_choice_of_place_are_given_none() {
    let bench = Bench::new();
    bench.install("pci_serial", &gvmm_built::plugin("pci_serial"));
    // Beside gvmm, where isolation looks for it first.
    gvmm_built::device_program();
    let answer = bench.prepare("--kernel Image --device pci_serial,console=null");
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    fs::remove_file(bench.path("tree.dtb")).unwrap();
    for (device, kind) in [("pci_serial", "pci"), ("pl031", "mmio")] {
        for (option, text) in [
            (
                "transport=mmio",
                "option 'transport' is for virtio devices, and this one is of kind KIND: leave it out",
            ),
            (
                "isolate=on",
                "isolate: only virtio devices run in a process of their own, and this one is of kind KIND: leave it out",
            ),
        ] {
            let text = format!("device {device}: {}", text.replace("KIND", kind));
            refused(&bench, &format!("--kernel Image --device {device},{option}"), &text);
        }
    }
}

#[test]
fn functions_that_cannot_be_are_refused() {
    let bench = Bench::new();
    bench.install("bad_function", &gvmm_built::bad_plugin("bad_function"));
    for (how, text) in [
        ("odd-bar", "BAR 4 of 0x18 bytes: sizes are powers of two from 16 on"),
        ("start-fails", "told to fail"),
    ] {
        let text = format!("device bad_function: {text}");
        refused(&bench, &format!("--kernel Image --device bad_function,how={how}"), &text);
    }
}

#[test]
fn disks_that_cannot_be_are_refused_and_odd_ones_explained() {
    let bench = Bench::new();
    fs::write(bench.path("empty"), "").unwrap();
    fs::write(bench.path("odd"), vec![0; 1000]).unwrap();
    let disk = |name: &str| format!("--kernel Image --device virtio_blk,disk={name}");
    refused(
        &bench,
        &disk("nothing"),
        "device virtio_blk: disk nothing does not exist; make an empty one with: ",
    );
    refused(&bench, &disk("empty"), "device virtio_blk: disk empty is empty; give it a size with: ");
    refused(&bench, &disk("plugins"), "device virtio_blk: disk plugins is a directory");
    let twice = format!("{} --device virtio_blk,disk=disk.img", disk("disk.img"));
    refused(&bench, &twice, "device virtio_blk: disk disk.img is open for writing in process ");
    let odd = bench.prepare(&disk("odd"));
    assert_eq!(odd.code, 0);
    assert!(odd.err.contains("disk odd has 1000 bytes, not a multiple of 512"), "{}", odd.err);
    let shared =
        bench.prepare(&format!("{},lock=off --device virtio_blk,disk=disk.img,lock=off", disk("disk.img")));
    assert_eq!(shared.code, 0, "{shared:?}");
}

#[test]
fn files_that_are_no_plugins_are_refused_in_one_sentence() {
    let bench = Bench::new();
    for name in ["no_entry", "no_section", "other_api", "panics_in_create", "panics_in_access"] {
        bench.install(name, &gvmm_built::bad_plugin(name));
    }
    let mut foreign = fs::read(bench.path("plugins/no_section.so")).unwrap();
    // e_machine of the ELF header: RISC-V.
    foreign[18..20].copy_from_slice(&243_u16.to_le_bytes());
    fs::write(bench.path("plugins/foreign.so"), foreign).unwrap();
    for (device, text) in [
        ("./disk.img", "plugin ./disk.img: not an ELF shared library; give the path of a plugin's .so file"),
        ("foreign", "plugin DIR/plugins/foreign.so: built for ELF machine 243, but this gvmm runs on "),
        ("no_section", "plugin DIR/plugins/no_section.so: no gvmm plugin: it has no .gvmm.plugin section"),
        ("no_entry", "plugin DIR/plugins/no_entry.so: it has a descriptor, but no code to go with it"),
        (
            "other_api",
            "plugin DIR/plugins/other_api.so: it was built for plugin API 9.1, this gvmm offers 0.2: update",
        ),
        ("panics_in_create", "device panics_in_create: panicked: no device today"),
        ("panics_in_access,at=layout", "device panics_in_access: panicked: told to panic in layout"),
        ("panics_in_access,at=node", "device panics_in_access: panicked: told to panic in node"),
        ("panics_in_access,at=start", "device panics_in_access: panicked: told to panic in start"),
    ] {
        refused(&bench, &format!("--kernel Image --device {device}"), text);
    }
}

#[test]
fn a_machine_without_an_accelerator_is_told_what_was_tried() {
    let bench = Bench::new();
    if std::path::Path::new("/dev/gunyah").exists() || cfg!(target_arch = "aarch64") {
        return;
    }
    let answer = bench.gvmm("--kernel Image");
    assert_eq!(answer.code, 2);
    assert!(
        answer.err.starts_with(
            "gvmm: no accelerator can run a VM on this machine:\n  gunyah: /dev/gunyah does not"
        )
    );
    assert!(answer.err.contains("\n  kvm: gvmm runs aarch64 guests"), "{}", answer.err);
    assert!(answer.err.contains("`cargo xtask demo`"), "{}", answer.err);
}

#[test]
fn a_device_tells_its_options() {
    let bench = Bench::new();
    let answer = bench.gvmm("--device virtio_blk,help");
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    assert!(answer.out.contains("  disk=<PATH>  (required)\n"), "{}", answer.out);
    assert!(answer.out.contains("  readonly=<on or off>  (default off)\n"), "{}", answer.out);
}

#[test]
fn plugin_commands_are_handed_on_with_their_exit_code() {
    let bench = Bench::new();
    // Beside gvmm, where it is looked for.
    gvmm_built::program("gvmm-plugin");
    let answer = bench.gvmm("plugin list");
    assert_eq!(answer.code, 0, "{answer:?}");
    let mut lines = answer.out.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
    assert!(lines.any(|words| words == ["pl031", "mmio"]), "{}", answer.out);
    let answer = bench.gvmm("plugin inspect --load nothing");
    assert_eq!(answer.code, 2);
    assert!(answer.err.starts_with("gvmm plugin: plugin nothing: "), "{}", answer.err);
}

#[test]
fn the_front_end_of_vhost_user_tells_its_options_as_plugins_do() {
    let answer = Bench::new().gvmm("--device vhost-user,help");
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    assert!(answer.out.contains("  type=<text>  (required)\n"), "{}", answer.out);
    assert!(answer.out.contains("  heartbeat=<a number from 0 to 3600>  (default 0)\n"), "{}", answer.out);
}

#[test]
fn back_ends_that_cannot_be_used_are_refused() {
    let bench = Bench::new();
    for (options, text) in [
        ("socket=s", "device vhost-user: option 'type' is missing: add type=text"),
        ("type=blk", "device vhost-user: option 'socket': give either socket=PATH or fd=NUMBER"),
        ("type=block,socket=s", "device vhost-user: option 'type': there is no device type 'block'"),
        ("type=blk,soket=s", "device vhost-user: unknown option 'soket'; did you mean 'socket'?"),
        ("type=blk,socket=s,wait=0", "device vhost-user: socket s: No such file or directory"),
        ("type=blk,fd=77", "device vhost-user: option 'fd': 77: Bad file "),
    ] {
        refused(&bench, &format!("--kernel Image --device vhost-user,{options}"), text);
    }
}
