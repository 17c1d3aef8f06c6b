use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use gvmm_plugin_api::testing::FakeHost;

use crate::testing::{TestDisk, pattern};

fn refusal(disk: &TestDisk, options: &[(&str, &str)]) -> String {
    let refused = disk.device(&Arc::new(FakeHost::default()), options).err().unwrap();
    refused.replace(disk.path().to_str().unwrap(), "DISK")
}

/// A disk whose path is something else.
fn in_place_of_the_file(make: impl Fn(&std::path::Path)) -> TestDisk {
    let disk = TestDisk::new(&[]);
    fs::remove_file(disk.path()).unwrap();
    make(&disk.path());
    disk
}

#[test]
fn things_that_are_no_disk_are_refused_with_a_way_out() {
    let missing = in_place_of_the_file(|_| {});
    assert_eq!(
        refusal(&missing, &[]),
        "disk DISK does not exist; make an empty one with: truncate -s 1G DISK"
    );
    let directory = in_place_of_the_file(|path| fs::create_dir(path).unwrap());
    assert_eq!(refusal(&directory, &[]), "disk DISK is a directory; name an image file or a block device");
    let pipe = in_place_of_the_file(|path| {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    });
    assert_eq!(refusal(&pipe, &[]), "disk DISK is a named pipe; name an image file or a block device");
    let null = in_place_of_the_file(|path| std::os::unix::fs::symlink("/dev/null", path).unwrap());
    assert_eq!(refusal(&null, &[]), "disk DISK is a character device; name an image file or a block device");
    assert_eq!(
        refusal(&TestDisk::new(&[]), &[]),
        "disk DISK is empty; give it a size with: truncate -s 1G DISK"
    );
}

#[test]
fn a_disk_that_may_only_be_read_says_so() {
    let disk = TestDisk::new(&pattern(4096));
    fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o444)).unwrap();
    if nix::unistd::geteuid().is_root() {
        // Root writes to any file; there is nothing to refuse.
        assert!(disk.device(&Arc::new(FakeHost::default()), &[]).is_ok());
    } else {
        assert_eq!(
            refusal(&disk, &[]),
            "disk DISK cannot be opened for writing: Permission denied (os error 13); \
             give this user write permission, or add readonly=on"
        );
    }
    assert!(disk.device(&Arc::new(FakeHost::default()), &[("readonly", "on")]).is_ok());
}

#[test]
fn images_of_other_formats_are_refused() {
    let mut image = pattern(64 << 10);
    image[..4].copy_from_slice(b"QFI\xfb");
    let disk = TestDisk::new(&image);
    assert_eq!(refusal(&disk, &[]), "disk DISK is a qcow2 image and not a raw disk; add format=qcow2");
}

#[test]
fn a_second_writer_is_refused_and_told_who_has_the_disk() {
    let disk = TestDisk::new(&pattern(4096));
    let machine = disk.start(&[]);
    let message = refusal(&disk, &[]);
    let holder = format!("disk DISK is open for writing in process {} (", std::process::id());
    assert!(message.starts_with(&holder), "{message}");
    assert!(message.ends_with("or add lock=off if sharing is meant"), "{message}");
    assert!(refusal(&disk, &[("readonly", "on")]).starts_with(&holder));
    assert!(disk.device(&machine.host, &[("lock", "off")]).is_ok());
    drop(machine);
    assert!(disk.device(&Arc::new(FakeHost::default()), &[]).is_ok());
}

#[test]
fn readers_share_a_disk_and_keep_writers_out() {
    let disk = TestDisk::new(&pattern(4096));
    let _one = disk.start(&[("readonly", "on")]);
    let _two = disk.start(&[("readonly", "on")]);
    let message = refusal(&disk, &[]);
    assert!(message.starts_with("disk DISK is open for reading in process"), "{message}");
}

#[test]
fn a_last_sector_in_part_is_padded_and_grows_when_written() {
    let disk = TestDisk::new(&pattern(1000));
    let mut machine = disk.start(&[]);
    let mut expected = pattern(1000);
    expected.resize(1024, 0);
    assert_eq!(machine.read(0, 1024), Ok(expected.clone()));
    assert_eq!(machine.read(2, 512), Err(1));
    assert_eq!(machine.range_request(13, &[(1, 1, 0)]), 0);
    expected[512..].fill(0);
    assert_eq!(machine.read(0, 1024), Ok(expected));
    assert_eq!(machine.write(1, &[7; 512]), 0);
    assert_eq!(disk.content(), [&pattern(512)[..], &[7; 512]].concat());
}

#[test]
fn an_image_cut_short_in_use_fails_reads_and_not_the_device() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = disk.start(&[]);
    fs::File::options().write(true).open(disk.path()).unwrap().set_len(4096).unwrap();
    assert_eq!(machine.read(0, 4096), Ok(pattern(4096)));
    assert_eq!(machine.read(4, 4096), Err(1));
    assert_eq!(machine.read(8, 512), Err(1));
    assert_eq!(machine.host.failures(), [""; 0]);
}

#[test]
fn direct_io_takes_buffers_of_any_alignment() {
    let disk = TestDisk::new(&pattern(256 << 10));
    let host = Arc::new(FakeHost::default());
    if let Err(refusal) = disk.device(&host, &[("direct", "on")]) {
        assert!(refusal.ends_with("its file system offers no direct I/O; leave out direct=on"), "{refusal}");
        return;
    }
    let mut machine = disk.start(&[("direct", "on")]);
    assert_eq!(machine.read(0, 128 << 10), Ok(pattern(128 << 10)));
    let odd = crate::testing::DATA + 3;
    let answer = machine.request(0, 8, gvmm_plugin_api::testing::Buffer::writable(odd, 160 << 10));
    assert_eq!(answer.status, 0);
    assert_eq!(machine.harness.memory().read(odd, 160 << 10), pattern(256 << 10)[4096..][..160 << 10]);
    let data = vec![0x5a; 96 << 10];
    machine.harness.memory().write(odd, &data);
    let answer = machine.request(1, 16, gvmm_plugin_api::testing::Buffer::readable(odd, 96 << 10));
    assert_eq!(answer.status, 0);
    assert_eq!(disk.content()[8192..][..96 << 10], data);
}

#[test]
fn larger_blocks_are_shown_to_the_guest_and_want_a_size_that_fits() {
    let disk = TestDisk::new(&pattern(8192));
    let machine = disk.start(&[("logical-block-size", "4096")]);
    let mut block_size = [0; 4];
    machine.device.read_config(20, &mut block_size);
    assert_eq!(block_size, 4096_u32.to_le_bytes());
    drop(machine);
    let odd = TestDisk::new(&pattern(4608));
    assert_eq!(
        refusal(&odd, &[("logical-block-size", "4096")]),
        "disk DISK has 4608 bytes, which is not a multiple of its block size of 4096; \
         extend it with: truncate -s %4096 DISK"
    );
}
