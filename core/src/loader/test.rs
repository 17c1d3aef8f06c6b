//! Kernels and initrds, good and bad, through [`load`].

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use proptest::prelude::*;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tempfile::TempDir;

use super::*;
use crate::memory::{Backing, Protection, RAM_BASE};

const MIB: u64 = 1 << 20;

/// An Image of 8 KiB whose header and content are known.
struct Image {
    text_offset: u64,
    image_size: u64,
    flags: u64,
}

impl Default for Image {
    fn default() -> Self {
        Self { text_offset: 0, image_size: 3 * MIB, flags: 0b1010 }
    }
}

impl Image {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..8192_u32).flat_map(|index| (index as u8).to_le_bytes()).collect();
        bytes[8..16].copy_from_slice(&self.text_offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.image_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.flags.to_le_bytes());
        bytes[56..60].copy_from_slice(b"ARM\x64");
        bytes
    }

    /// The same with a PE header whose only section ends at `end`.
    fn with_section_end(&self, end: u32) -> Vec<u8> {
        let mut bytes = self.bytes();
        bytes[..2].copy_from_slice(b"MZ");
        bytes[60..64].copy_from_slice(&64_u32.to_le_bytes());
        bytes[64..88].fill(0);
        bytes[64..68].copy_from_slice(b"PE\0\0");
        bytes[70] = 1;
        bytes[88..128].fill(0);
        bytes[88 + 16..88 + 20].copy_from_slice(&(end - 4096).to_le_bytes());
        bytes[88 + 20..88 + 24].copy_from_slice(&4096_u32.to_le_bytes());
        bytes
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

fn zboot(compression: &str, payload: &[u8]) -> Vec<u8> {
    const OFFSET: u32 = 0x1234;
    let mut bytes = vec![0; OFFSET as usize];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[4..8].copy_from_slice(b"zimg");
    bytes[8..12].copy_from_slice(&OFFSET.to_le_bytes());
    bytes[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes[0x18..0x18 + compression.len()].copy_from_slice(compression.as_bytes());
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(b"something behind the payload");
    bytes
}

struct Bench {
    folder: TempDir,
    ram: RamBuilder,
}

impl Bench {
    fn new(size: u64) -> Self {
        let ram = RamBuilder::new(RAM_BASE, size, Backing::Anonymous, Protection::None).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), ram }
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn load(&mut self, kernel: &[u8]) -> Result<Loaded, Error> {
        let kernel = self.file("kernel", kernel);
        load(&mut self.ram, &kernel, None)
    }

    fn load_both(&mut self, kernel: &[u8], initrd: &[u8]) -> Result<Loaded, Error> {
        let kernel = self.file("kernel", kernel);
        let initrd = self.file("initrd", initrd);
        load(&mut self.ram, &kernel, Some(&initrd))
    }

    fn memory(&mut self, address: u64, length: usize) -> Vec<u8> {
        self.ram.slice_mut(address, length as u64).unwrap().to_vec()
    }
}

/// The error for a kernel in 16 MiB, with the folder taken out of it.
fn error_of(kernel: &[u8]) -> String {
    let mut bench = Bench::new(16 * MIB);
    let error = bench.load(kernel).unwrap_err().to_string();
    error.replace(&format!("{}/", bench.folder.path().display()), "")
}

#[test]
fn puts_the_kernel_at_the_base_and_the_device_tree_behind_it() {
    let mut bench = Bench::new(16 * MIB);
    let image = Image::default().bytes();
    let loaded = bench.load(&image).unwrap();
    let boot = Boot { entry: RAM_BASE, dtb_address: RAM_BASE + 4 * MIB, dtb_size: 0x1_0000 };
    assert_eq!(loaded, Loaded { boot, initrd: None });
    assert_eq!(bench.memory(RAM_BASE, image.len()), image);
}

#[test]
fn puts_the_initrd_behind_the_device_tree() {
    let mut bench = Bench::new(16 * MIB);
    let loaded = bench.load_both(&Image::default().bytes(), b"initrd").unwrap();
    let initrd = Initrd { address: RAM_BASE + 4 * MIB + 0x1_0000, size: 6 };
    assert_eq!(loaded.initrd, Some(initrd));
    assert_eq!(bench.memory(initrd.address, 7), b"initrd\0");
}

#[test]
fn branches_to_a_kernel_with_a_text_offset() {
    let mut bench = Bench::new(16 * MIB);
    let image = Image { text_offset: 0x8_0000, ..Image::default() }.bytes();
    let loaded = bench.load(&image).unwrap();
    assert_eq!(bench.memory(RAM_BASE, 4), 0x1402_0000_u32.to_le_bytes());
    assert_eq!(bench.memory(RAM_BASE + 0x8_0000, image.len()), image);
    assert_eq!(loaded.boot.entry, RAM_BASE);
}

#[test]
fn unpacks_every_kind_of_compressed_kernel() {
    let image = Image::default().bytes();
    let kinds = [
        ("gzip", gzip(&image)),
        ("zstd", zstd(&image)),
        ("zboot gzip", zboot("gzip", &gzip(&image))),
        ("zboot zstd", zboot("zstd", &zstd(&image))),
        ("zboot zstd22", zboot("zstd22", &zstd(&image))),
    ];
    for (kind, kernel) in kinds {
        let mut bench = Bench::new(16 * MIB);
        let loaded = bench.load(&kernel).unwrap();
        assert_eq!(loaded.boot.dtb_address, RAM_BASE + 4 * MIB, "{kind}");
        assert_eq!(bench.memory(RAM_BASE, image.len() + 1), [image.as_slice(), &[0]].concat(), "{kind}");
    }
}

#[test]
fn keeps_everything_below_the_shared_window() {
    let protection = Protection::Lent { window: 10 * MIB };
    let ram = RamBuilder::new(RAM_BASE, 16 * MIB, Backing::Anonymous, protection).unwrap();
    let mut bench = Bench { ram, ..Bench::new(2 * MIB) };
    let error =
        bench.load_both(&Image::default().bytes(), &vec![0; 2 * MIB as usize]).unwrap_err().to_string();
    assert!(error.contains("does not fit into the 1 MiB of guest memory behind the kernel"), "{error}");
}

#[test]
fn fills_memory_to_the_last_byte() {
    let mut bench = Bench::new(16 * MIB);
    let room = (12 * MIB - 0x1_0000) as usize;
    assert!(bench.load_both(&Image::default().bytes(), &vec![7; room]).is_ok());
    assert_eq!(bench.memory(RAM_BASE + 16 * MIB - 1, 1), [7]);
}

#[test]
fn rejects_an_initrd_that_does_not_fit() {
    let mut bench = Bench::new(16 * MIB);
    let error =
        bench.load_both(&Image::default().bytes(), &vec![0; 13 * MIB as usize]).unwrap_err().to_string();
    assert!(
        error.contains("of 13 MiB does not fit into the 11 MiB of guest memory behind the kernel"),
        "{error}"
    );
}

#[test]
fn rejects_a_kernel_that_does_not_fit() {
    let by_header = Image { image_size: 100 * MIB, ..Image::default() };
    assert_eq!(
        error_of(&by_header.bytes()),
        "the kernel kernel and its device tree need 101 MiB of guest memory, and there are 16 MiB: \
         give more with --memory"
    );
    let mut by_length = Image::default().bytes();
    by_length.resize(20 * MIB as usize, 0);
    assert!(error_of(&by_length).contains("need 21 MiB of guest memory, and there are 16 MiB"));
    assert!(error_of(&gzip(&by_length)).contains("need 19 MiB of guest memory, and there are 16 MiB"));
    let without_room_for_the_tree = Image { image_size: 15 * MIB, ..Image::default() };
    assert!(error_of(&without_room_for_the_tree.bytes()).contains("need 17 MiB"));
    assert!(
        error_of(&Image { image_size: u64::MAX, ..Image::default() }.bytes()).contains("there are 16 MiB")
    );
}

#[test]
fn rejects_missing_and_empty_files() {
    let mut bench = Bench::new(16 * MIB);
    let error = load(&mut bench.ram, Path::new("/nowhere/Image"), None).unwrap_err().to_string();
    assert_eq!(error, "cannot open the kernel /nowhere/Image: No such file or directory (os error 2)");
    let folder = bench.folder.path().to_owned();
    let error = load(&mut bench.ram, &folder, None).unwrap_err().to_string();
    assert!(error.ends_with("Is a directory (os error 21)"), "{error}");
    assert_eq!(error_of(b""), "the kernel kernel is empty: was it copied completely?");
    assert_eq!(error_of(&gzip(b"")), "the kernel kernel is empty: was it copied completely?");
    let error = bench.load_both(&Image::default().bytes(), b"").unwrap_err().to_string();
    assert!(error.starts_with("the initrd") && error.contains("is empty"), "{error}");
}

#[test]
fn rejects_truncated_kernels() {
    let image = Image::default();
    assert_eq!(
        error_of(&image.with_section_end(9000)),
        "the kernel kernel is incomplete: it has 8192 of 9000 bytes, copy it again"
    );
    assert!(Bench::new(16 * MIB).load(&image.with_section_end(8192)).is_ok());
    assert!(error_of(&image.bytes()[..60]).contains("it has 60 of 64 bytes"));
    for (kind, kernel) in [("gzip", gzip(&image.bytes())), ("zstd", zstd(&image.bytes()))] {
        let error = error_of(&kernel[..kernel.len() / 2]);
        assert!(error.starts_with(&format!("the kernel kernel cannot be unpacked ({kind}: ")), "{error}");
    }
    assert!(error_of(&zboot("gzip", &gzip(&image.bytes()))[..5000]).contains("cannot be unpacked"));
    assert!(error_of(&zboot("gzip", b"")[..3000]).contains("it has 3000 of 4660 bytes"));
}

#[test]
fn rejects_damaged_compressed_kernels() {
    let mut kernel = gzip(&Image::default().bytes());
    let checksum = kernel.len() - 8;
    kernel[checksum] ^= 1;
    assert!(error_of(&kernel).contains("cannot be unpacked (gzip: "));
    let mut kernel = zstd(&Image::default().bytes());
    let checksum = kernel.len() - 4;
    kernel[checksum] ^= 1;
    assert!(error_of(&kernel).contains("cannot be unpacked (zstd: wrong checksum)"));
}

#[test]
fn rejects_arm64_kernels_that_the_machine_cannot_run() {
    assert_eq!(
        error_of(&Image { flags: 1, ..Image::default() }.bytes()),
        "the kernel kernel is big-endian: build it with CONFIG_CPU_LITTLE_ENDIAN"
    );
    assert!(error_of(&Image { image_size: 0, ..Image::default() }.bytes()).contains("image_size is 0"));
    assert!(error_of(&Image { text_offset: 2, ..Image::default() }.bytes()).contains("text_offset"));
    assert!(error_of(&Image { text_offset: u64::MAX, ..Image::default() }.bytes()).contains("text_offset"));
}

#[test]
fn names_what_is_no_arm64_kernel() {
    let with = |offset: usize, magic: &[u8]| {
        let mut bytes = vec![0; 1024];
        bytes[offset..offset + magic.len()].copy_from_slice(magic);
        bytes
    };
    let mut elf = with(0, b"\x7fELF");
    elf[18] = 62;
    for (kernel, name) in [
        (elf, "an ELF file (vmlinux?) for x86-64: take arch/arm64/boot/Image"),
        (with(0x202, b"HdrS"), "an x86 kernel (bzImage): take a kernel that was built for arm64"),
        (with(0x24, &[0x18, 0x28, 0x6f, 0x01]), "a 32-bit Arm kernel (zImage): take"),
        (with(0x30, b"RISCV\0"), "a RISC-V kernel: take"),
        (with(0, b"MZ"), "another EFI program: take"),
        (with(0, b"\xfd7zXZ\0"), "a file compressed with xz: unpack it first"),
        (with(0, b"ANDROID!"), "an Android boot image: take the kernel out of it"),
        (with(0, &[0xd0, 0x0d, 0xfe, 0xed]), "a device tree or a U-Boot FIT image: take"),
        (zboot("xzkern", b"x"), "an EFI zboot kernel compressed with \"xzkern\": unpack it first"),
        (b"#!/bin/sh".to_vec(), "an unknown file that starts with the bytes 23 21 2f 62: take"),
        (gzip(&with(0x202, b"HdrS")), "an x86 kernel (bzImage), compressed with gzip: take"),
        (gzip(&gzip(b"x")), "data compressed with gzip, compressed with gzip: unpack it by hand"),
    ] {
        let error = error_of(&kernel);
        assert!(error.starts_with(&format!("kernel is not an arm64 kernel Image but {name}")), "{error}");
    }
}

/// Bytes that begin like a kernel file of each kind and go on as they please.
fn nearly_a_kernel() -> impl Strategy<Value = Vec<u8>> {
    let start = prop_oneof![
        Just(Vec::new()),
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(text_offset, image_size, flags)| Image {
            text_offset,
            image_size,
            flags
        }
        .bytes()),
        (0_u32..0x20_0000, 0_u64..32 * MIB).prop_map(|(end, image_size)| Image {
            image_size,
            ..Image::default()
        }
        .with_section_end(4096 + end)),
        Just(vec![0x1f, 0x8b, 8, 0]),
        Just(vec![0x28, 0xb5, 0x2f, 0xfd]),
        Just(gzip(&Image::default().bytes())),
        Just(zstd(&Image::default().bytes())),
        Just(zboot("gzip", &gzip(&Image::default().bytes()))),
        Just(zboot("zstd", b"")),
    ];
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..8);
    (start, proptest::collection::vec(any::<u8>(), 0..600), changes).prop_map(|(mut bytes, tail, changes)| {
        bytes.extend(tail);
        for (index, value) in changes {
            if !bytes.is_empty() {
                let index = index.index(bytes.len());
                bytes[index] = value;
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn never_panics_and_never_leaves_the_guests_memory(kernel in nearly_a_kernel(), initrd in any::<[u8; 3]>()) {
        let mut bench = Bench::new(16 * MIB);
        if let Ok(loaded) = bench.load_both(&kernel, &initrd) {
            let end = RAM_BASE + 16 * MIB;
            let initrd = loaded.initrd.unwrap();
            prop_assert!(loaded.boot.dtb_address.is_multiple_of(2 * MIB));
            prop_assert!(loaded.boot.dtb_address + loaded.boot.dtb_size <= initrd.address);
            prop_assert!(initrd.address + initrd.size <= end);
        }
    }
}
