//! Plugins in processes of their own: what they reach, and what becomes of their devices.

#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gvmm_plugin_api::host::{Library, Manifest};
use gvmm_plugin_api::testing::{Buffer, FakeHost, VirtioHarness, wait_until};
use gvmm_plugin_api::virtio::{COMMON_FEATURES, VirtioDevice};
use gvmm_vhost::frontend;
use gvmm_vhost::isolation::child::Isolated;

fn isolated(plugin: PathBuf, id: &str, options: &[(&str, &str)]) -> Isolated {
    let manifest = Manifest::read(&plugin).unwrap();
    let values = manifest.check(options.iter().copied()).unwrap();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_gvmm-device"));
    Isolated { program, plugin, manifest, values, id: id.to_owned(), required: false, max_level: 3 }
}

fn start(isolated: Isolated) -> Result<(Arc<FakeHost>, Arc<dyn VirtioDevice>), String> {
    let host = Arc::new(FakeHost::default());
    let device = frontend::isolate(isolated, host.clone())?;
    Ok((host, device))
}

fn metric(device: &Arc<dyn VirtioDevice>, name: &str) -> u64 {
    device.metrics().into_iter().find(|metric| metric.name == name).unwrap().value
}

/// Processes that serve the device with this id.
fn processes(id: &str) -> Vec<i32> {
    let mark = format!(",id={id}\0");
    let serves = |process: &i32| {
        let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&mark)
    };
    let all = std::fs::read_dir("/proc").unwrap();
    let numbers = all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    numbers.filter(serves).collect()
}

fn kill(process: i32) {
    let process = nix::unistd::Pid::from_raw(process);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Asks a source of entropy for a few bytes.
fn random(harness: &VirtioHarness, queue: &mut gvmm_plugin_api::testing::QueueDriver) {
    harness.memory().write(VirtioHarness::DATA, &[0; 64]);
    let used = queue.request(&[Buffer::writable(VirtioHarness::DATA, 64)]);
    assert_eq!(used.len, 64);
    assert_ne!(harness.memory().read(VirtioHarness::DATA, 64), [0; 64]);
}

#[test]
fn a_plugin_reaches_what_it_declares_and_nothing_else() {
    let plugin = gvmm_built::bad_plugin("breaks_out");
    let file = tempfile::NamedTempFile::new().unwrap();
    let options = [("file", file.path().to_str().unwrap()), ("other", "/etc/passwd")];
    let wanted = "declared file works, write of it fails, other file fails, library fails, network fails, \
                  socket fails, exec fails, ptrace fails";
    let error = start(isolated(plugin.clone(), "breaks-out", &options)).map(drop).unwrap_err();
    assert_eq!(error, format!("device breaks_out: {wanted}"));
    // The same in this process, where nothing stops it.
    let library = Library::load(&plugin, 3).unwrap();
    let values = library.manifest().check(options).unwrap();
    let error = library.create(&values, Arc::new(FakeHost::default())).map(drop).unwrap_err().to_string();
    assert_eq!(error, format!("device breaks_out: {}", wanted.replace("fails", "works")));
}

#[test]
fn a_process_that_is_killed_is_replaced_and_the_last_one_ends_with_the_device() {
    let (host, device) = start(isolated(gvmm_built::plugin("virtio_rng"), "killed", &[])).unwrap();
    let mut harness = VirtioHarness::new(device.clone(), COMMON_FEATURES);
    let size = device.traits().queue_sizes[0];
    let mut queue = harness.start(0, size);
    for round in 1..=3 {
        random(&harness, &mut queue);
        let running = processes("killed");
        assert_eq!(running.len(), 1);
        kill(running[0]);
        wait_until("another process", || metric(&device, "connections") == round + 1);
    }
    random(&harness, &mut queue);
    assert_eq!(host.failures(), [""; 0]);
    drop((harness, device));
    assert_eq!(processes("killed"), [0; 0]);
    assert!(!host.log_lines().iter().any(|(_, line)| line.contains("did not end")), "the last was killed");
}

#[test]
fn a_disk_has_its_own_queues_and_says_why_it_does_not_start() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let plugin = gvmm_built::plugin("virtio_blk");
    let options = [("disk", disk.path().to_str().unwrap()), ("queues", "3"), ("queue-size", "512")];
    let (_, device) = start(isolated(plugin.clone(), "disk", &options)).unwrap();
    assert_eq!(device.traits().queue_sizes, [512; 3]);
    let mut capacity = [0; 8];
    device.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), (1 << 20) / 512);
    let error = start(isolated(plugin, "nothing", &[("disk", "/no/such/disk")])).map(drop).unwrap_err();
    assert!(error.starts_with("device virtio_blk: ") && error.contains("/no/such/disk"), "{error}");
}

#[test]
fn a_device_with_registers_is_refused_with_the_reason() {
    let error = start(isolated(gvmm_built::plugin("pl031"), "clock", &[])).map(drop).unwrap_err();
    assert_eq!(
        error,
        "device pl031: isolate: only virtio devices run in a process of their own, and this one is of kind mmio: leave it \
         out"
    );
}

#[test]
fn a_console_is_the_one_of_the_machine() {
    let host = Arc::new(FakeHost::default());
    let mut console = host.plug_console();
    let plugin = isolated(gvmm_built::plugin("virtio_console"), "console", &[("console", "stdio")]);
    let device = frontend::isolate(plugin, host.clone()).unwrap();
    let mut harness = VirtioHarness::new(device, COMMON_FEATURES);
    let mut transmit = harness.start(1, 16);
    harness.memory().write(VirtioHarness::DATA, b"hello");
    transmit.request(&[Buffer::readable(VirtioHarness::DATA, 5)]);
    assert_eq!(console.shown(5), b"hello");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let mut plugin = isolated(gvmm_built::plugin("virtio_rng"), "none", &[]);
    plugin.program = Path::new("/no/such/program").to_owned();
    let error = start(plugin).map(drop).unwrap_err();
    assert!(error.starts_with("device virtio_rng: isolate: cannot start /no/such/program"), "{error}");
}

/// Has every system call of this number fail in this thread and in the processes that it starts.
fn forbid(call: i64) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let fails = SeccompAction::Errno(libc::ENOSYS as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let rules = [(call, Vec::new())].into_iter().collect();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, fails, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

#[test]
fn a_sandbox_that_is_not_whole_is_told_and_refused_where_it_is_required() {
    let start_without_landlock = |required| {
        let plugin = gvmm_built::plugin("virtio_rng");
        let thread = std::thread::spawn(move || {
            forbid(libc::SYS_landlock_create_ruleset);
            start(Isolated { required, ..isolated(plugin, "half", &[]) })
        });
        thread.join().unwrap()
    };
    // A host may refuse more than this.
    let landlock = "Landlock (this kernel has none, or it is switched off)";
    let error = start_without_landlock(true).map(drop).unwrap_err();
    let refusal = "device virtio_rng: a whole sandbox is required, and this host refused: ";
    assert!(error.starts_with(refusal) && error.contains(landlock), "{error}");
    let (host, _device) = start_without_landlock(false).unwrap();
    let told = |(level, line): &(u8, String)| {
        *level == 2 && line.contains("the sandbox is not whole") && line.contains(landlock)
    };
    assert!(host.log_lines().iter().any(told), "{:?}", host.log_lines());
}
