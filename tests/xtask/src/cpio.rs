//! Archives that Linux unpacks as its first file system: the "newc" format of cpio
//! (Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::path::Path;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive under construction. Every file belongs to root.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds a folder; its parents must have been added before.
    pub(crate) fn folder(&mut self, name: &str) -> &mut Self {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a file that everybody may execute.
    pub(crate) fn executable(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.entry(name, REGULAR | 0o755, (0, 0), content)
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.entry(name, REGULAR | 0o644, (0, 0), content)
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, name: &str, to: &str) -> &mut Self {
        self.entry(name, SYMLINK | 0o777, (0, 0), to.as_bytes())
    }

    /// Adds a character device, which needs no privilege here.
    pub(crate) fn device(&mut self, name: &str, major: u32, minor: u32) -> &mut Self {
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Ends the archive and writes it.
    pub(crate) fn write(&mut self, file: &Path) -> Result<()> {
        self.inode = 0;
        self.entry(TRAILER, 0, (0, 0), &[]);
        std::fs::write(file, &self.bytes).with_context(|| format!("cannot write {}", file.display()))
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> &mut Self {
        self.inode += 1;
        let (owner, group, links, modified, device_of_file, checksum) = (0, 0, 1, 0, (0, 0), 0);
        let fields = [
            self.inode,
            mode,
            owner,
            group,
            links,
            modified,
            content.len() as u32,
            device_of_file.0,
            device_of_file.1,
            device.0,
            device.1,
            name.len() as u32 + 1,
            checksum,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(bytes: &[u8], index: usize) -> usize {
        let start = 6 + index * 8;
        usize::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
    }

    /// Reads an archive back: name, mode, device minor, content.
    fn entries(mut bytes: &[u8]) -> Vec<(String, usize, usize, Vec<u8>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let (mode, size, minor, name_length) =
                (field(bytes, 1), field(bytes, 6), field(bytes, 10), field(bytes, 11));
            let name = String::from_utf8(bytes[110..110 + name_length - 1].to_vec()).unwrap();
            let content = (110 + name_length).next_multiple_of(4);
            found.push((name, mode, minor, bytes[content..content + size].to_vec()));
            bytes = &bytes[(content + size).next_multiple_of(4)..];
        }
        found
    }

    #[test]
    fn what_was_added_reads_back_in_order_and_ends_with_the_trailer() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("initrd");
        Archive::default()
            .folder("dev")
            .device("dev/console", 5, 1)
            .executable("init", b"#!/bin/sh\n")
            .symlink("bin", "usr/bin")
            .write(&file)
            .unwrap();
        let entries = entries(&std::fs::read(file).unwrap());
        let names: Vec<_> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(names, ["dev", "dev/console", "init", "bin", TRAILER]);
        assert_eq!(entries[1].1, 0o020_600);
        assert_eq!(entries[1].2, 1);
        assert_eq!(entries[2].3, b"#!/bin/sh\n");
        assert_eq!(entries[3].3, b"usr/bin");
    }
}
