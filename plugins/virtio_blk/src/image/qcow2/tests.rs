use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use gvmm_plugin_api::testing::{Buffer, FakeHost};
use imago::file::File as FileStorage;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatCreateBuilder};
use proptest::prelude::*;

use crate::testing::{Machine, TestDisk, pattern};

const SIZE: usize = 4 << 20;

/// Replaces a test disk's file by an empty qcow2 image.
fn make(path: &Path, cluster_size: usize, backing: Option<(&str, &str)>) {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    let storage = FileStorage::try_from(file).unwrap();
    let builder = Qcow2::<FileStorage, FormatAccess<FileStorage>>::create_builder(storage);
    let builder = builder.size(SIZE as u64).cluster_size(cluster_size);
    match backing {
        Some((name, format)) => builder.backing(name.to_owned(), format.to_owned()).create().unwrap(),
        None => builder.create().unwrap(),
    }
}

fn image(cluster_size: usize) -> TestDisk {
    let disk = TestDisk::new(&[]);
    make(&disk.path(), cluster_size, None);
    disk
}

/// Makes an image without extensions one of version 2, whose header ends where the features of version 3 begin.
fn downgrade(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    assert_eq!((&bytes[4..8], &bytes[72..80]), (&[0, 0, 0, 3][..], &[0; 8][..]));
    bytes[7] = 2;
    fs::write(path, bytes).unwrap();
}

fn refusal(disk: &TestDisk, options: &[(&str, &str)]) -> String {
    let options = [&[("format", "qcow2")], options].concat();
    let refused = disk.device(&Arc::new(FakeHost::default()), &options).err().unwrap();
    refused.replace(disk.path().parent().unwrap().to_str().unwrap(), "FOLDER")
}

fn read_all(machine: &mut Machine) -> Vec<u8> {
    let piece = 1 << 20;
    (0..SIZE / piece).flat_map(|i| machine.read((i * piece / 512) as u64, piece as u32).unwrap()).collect()
}

#[test]
fn what_is_written_is_there_when_the_image_is_opened_again() {
    // All there are, in images of version 3, and one of version 2.
    let images = (9..=21).map(|bits| (1 << bits, false)).chain([(65536, true)]);
    for (cluster_size, old) in images {
        let disk = image(cluster_size);
        if old {
            downgrade(&disk.path());
        }
        let mut machine = disk.start(&[("format", "qcow2")]);
        let mut expected = vec![0; SIZE];
        for (sector, len, byte) in [(0, 512, 1), (7, 70_656, 2), (4000, 200 << 10, 3), (8191, 512, 4)] {
            assert_eq!(machine.write(sector, &vec![byte; len]), 0, "clusters of {cluster_size}");
            expected[sector as usize * 512..][..len].fill(byte);
        }
        assert_eq!(machine.range_request(13, &[(4100, 100, 0), (20, 60, 1)]), 0);
        expected[4100 * 512..4200 * 512].fill(0);
        expected[20 * 512..80 * 512].fill(0);
        assert_eq!(read_all(&mut machine), expected);
        // Stopped and not flushed: what the process held must be in the file all the same.
        machine.device.stop_queue(0).unwrap();
        drop(machine);
        assert_eq!(read_all(&mut disk.start(&[("format", "qcow2")])), expected, "clusters of {cluster_size}");
    }
}

#[test]
fn what_was_flushed_is_in_the_file_at_that_moment() {
    let disk = image(65536);
    let mut machine = disk.start(&[("format", "qcow2")]);
    assert_eq!(machine.write(100, &pattern(128 << 10)), 0);
    assert_eq!(machine.flush(), 0);
    let copy = TestDisk::new(&disk.content());
    let mut other = copy.start(&[("format", "qcow2")]);
    assert_eq!(other.read(100, 128 << 10), Ok(pattern(128 << 10)));
}

#[test]
fn with_cache_writethrough_every_write_is_in_the_file() {
    let disk = image(65536);
    let mut machine = disk.start(&[("format", "qcow2"), ("cache", "writethrough")]);
    assert_eq!(machine.write(3, &pattern(8192)), 0);
    let copy = TestDisk::new(&disk.content());
    assert_eq!(copy.start(&[("format", "qcow2")]).read(3, 8192), Ok(pattern(8192)));
}

#[test]
fn a_read_only_image_stays_as_it_is() {
    let disk = image(65536);
    let before = disk.content();
    let mut machine = disk.start(&[("format", "qcow2"), ("readonly", "on")]);
    assert_eq!(machine.write(0, &[1; 512]), 1);
    assert_eq!(machine.flush(), 0);
    assert_eq!(machine.read(0, 512), Ok(vec![0; 512]));
    drop(machine);
    assert_eq!(disk.content(), before);
}

#[test]
fn files_that_are_no_usable_image_are_refused() {
    let raw = TestDisk::new(&pattern(8192));
    assert_eq!(refusal(&raw, &[]), "disk FOLDER/disk.img is not a qcow2 image");
    let disk = image(65536);
    let mut bytes = disk.content();
    bytes[79] |= 1;
    fs::write(disk.path(), &bytes).unwrap();
    assert_eq!(
        refusal(&disk, &[]),
        "disk FOLDER/disk.img was not closed properly; repair it with: qemu-img check -r all"
    );
}

/// An image on a raw file `base.img` in the same folder.
fn image_on_base(name: &str) -> (TestDisk, Vec<u8>) {
    let disk = TestDisk::new(&[]);
    let base = pattern(SIZE);
    fs::write(disk.path().with_file_name("base.img"), &base).unwrap();
    make(&disk.path(), 65536, Some((name, "raw")));
    (disk, base)
}

#[test]
fn backing_files_are_those_that_the_user_names() {
    let (disk, base) = image_on_base("base.img");
    assert_eq!(
        refusal(&disk, &[]),
        "disk FOLDER/disk.img cannot be opened: Backing file \"FOLDER/base.img\": \
         add backing=FOLDER/base.img if the guest may read that file"
    );
    let folder = disk.path().parent().unwrap().to_str().unwrap().to_owned();
    for allowed in [format!("{folder}/base.img"), folder] {
        let mut machine = disk.start(&[("format", "qcow2"), ("backing", &allowed)]);
        assert_eq!(machine.read(0, 1 << 20), Ok(base[..1 << 20].to_vec()));
        assert_eq!(machine.write(1, &[9; 512]), 0);
        let read = machine.read(0, 2048).unwrap();
        assert_eq!(read[512..1024], [9; 512]);
        assert_eq!(read[1024..], base[1024..2048]);
        assert_eq!(machine.write(1, &base[512..1024]), 0);
        drop(machine);
        assert_eq!(fs::read(disk.path().with_file_name("base.img")).unwrap(), base);
    }
}

#[test]
fn a_chain_of_images_shows_the_topmost_content_and_changes_the_first_alone() {
    let disk = TestDisk::new(&[]);
    let file = |name: &str| disk.path().with_file_name(name);
    let folder = disk.path().parent().unwrap().to_str().unwrap().to_owned();
    let mut expected = pattern(SIZE);
    fs::write(file("base.img"), &expected).unwrap();
    // Clusters of another size each, and sectors of its own in front of those below.
    let chain = [
        (4096, "lowest.qcow2", ("base.img", "raw")),
        (2 << 20, "middle.qcow2", ("lowest.qcow2", "qcow2")),
        (512, "disk.img", ("middle.qcow2", "qcow2")),
    ];
    for (sector, (cluster_size, name, backing)) in (0..).zip(chain) {
        make(&file(name), cluster_size, Some(backing));
        let path = file(name);
        let options = [("disk", path.to_str().unwrap()), ("format", "qcow2"), ("backing", &folder)];
        assert_eq!(disk.start(&options).write(sector, &[7 + sector as u8; 1024]), 0);
        expected[512 * sector as usize..][..1024].fill(7 + sector as u8);
    }
    let below = || ["base.img", "lowest.qcow2", "middle.qcow2"].map(|name| fs::read(file(name)).unwrap());
    let before = below();
    let mut machine = disk.start(&[("format", "qcow2"), ("backing", &folder)]);
    assert_eq!(read_all(&mut machine), expected);
    assert_eq!(machine.write(100, &pattern(8192)), 0);
    assert_eq!(machine.range_request(13, &[(1, 2, 1)]), 0);
    assert_eq!(machine.read(1, 1024), Ok(vec![0; 1024]));
    drop(machine);
    assert!(below() == before, "a backing file was written to");
}

#[test]
fn backing_files_elsewhere_are_refused() {
    let secret = TestDisk::new(&pattern(8192));
    let secret = secret.path();
    let (disk, _) = image_on_base(secret.to_str().unwrap());
    let folder = disk.path().parent().unwrap().to_str().unwrap().to_owned();
    let message = refusal(&disk, &[("backing", &folder)]);
    assert!(message.ends_with("is not what backing=FOLDER allows"), "{message}");
    std::os::unix::fs::symlink(&secret, disk.path().with_file_name("link.img")).unwrap();
    make(&disk.path(), 65536, Some(("link.img", "raw")));
    let message = refusal(&disk, &[("backing", &folder)]);
    assert!(message.ends_with("is not what backing=FOLDER allows"), "{message}");
}

#[test]
fn a_chain_without_end_is_refused() {
    let disk = TestDisk::new(&[]);
    make(&disk.path(), 65536, Some(("disk.img", "qcow2")));
    let folder = disk.path().parent().unwrap().to_str().unwrap().to_owned();
    let message = refusal(&disk, &[("backing", &folder), ("readonly", "on")]);
    assert!(message.ends_with("there are more than 16 images in the chain"), "{message}");
}

#[test]
fn a_backing_file_in_use_by_a_writer_is_refused() {
    let (disk, _) = image_on_base("base.img");
    let base = disk.path().with_file_name("base.img");
    let base = base.to_str().unwrap();
    let _writer = disk.start(&[("disk", base)]);
    let message = refusal(&disk, &[("backing", base)]);
    assert!(message.contains("is open for writing in process"), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_corrupt_image_is_refused_or_fails_requests(
        cluster_size in prop::sample::select(vec![512_usize, 4096, 65536]),
        old in any::<bool>(),
        // Header, first tables, and places anywhere.
        damage in prop::collection::vec((prop_oneof![0..104_usize, 0..8192_usize, 0..(1_usize << 19)], any::<u8>()), 1..24),
        writes in prop::collection::vec((0..8000_u64, 1..64_usize), 1..8),
    ) {
        let disk = image(cluster_size);
        if old {
            downgrade(&disk.path());
        }
        let mut machine = disk.start(&[("format", "qcow2")]);
        for sector in [0, 1000, 5000] {
            machine.write(sector, &pattern(100 << 10));
        }
        machine.device.stop_queue(0);
        drop(machine);
        let mut bytes = disk.content();
        for (at, byte) in damage {
            let len = bytes.len();
            bytes[at % len] = byte;
        }
        fs::write(disk.path(), &bytes).unwrap();
        let host = Arc::new(FakeHost::default());
        if disk.device(&host, &[("format", "qcow2")]).is_err() {
            return Ok(());
        }
        let mut machine = disk.start(&[("format", "qcow2")]);
        for (sector, sectors) in writes {
            let data = Buffer::readable(crate::testing::DATA, sectors as u32 * 512);
            prop_assert!(machine.request(1, sector, data).status <= 1);
            let data = Buffer::writable(crate::testing::DATA, sectors as u32 * 512);
            prop_assert!(machine.request(0, sector, data).status <= 1);
            prop_assert!(machine.range_request(11, &[(sector, sectors as u32, 0)]) <= 1);
        }
        prop_assert!(machine.flush() <= 1);
        prop_assert_eq!(machine.host.failures(), [""; 0]);
    }
}
