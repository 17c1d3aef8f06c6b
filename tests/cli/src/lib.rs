//! What gvmm answers to what people type, on any machine: no VM is started.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A folder with a good kernel, a disk and the default plugins, in which gvmm is run.
pub struct Bench {
    folder: TempDir,
}

/// How a run ended.
#[derive(Debug)]
pub struct Answer {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error, the bench's folder shown as `DIR`.
    pub err: String,
}

impl Bench {
    /// A fresh bench.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bench = Self { folder };
        fs::write(bench.path("Image"), image(4096)).unwrap();
        fs::write(bench.path("disk.img"), vec![0; 1 << 20]).unwrap();
        fs::create_dir(bench.path("plugins")).unwrap();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins");
        fs::copy(sources.join("default.toml"), bench.path("plugins/default.toml")).unwrap();
        for name in ["pl011", "pl031", "virtio_console", "virtio_blk"] {
            bench.install(name, &gvmm_built::plugin(name));
        }
        bench
    }

    /// Puts a plugin file where gvmm looks for names.
    pub fn install(&self, name: &str, file: &Path) {
        symlink(file, self.path(&format!("plugins/{name}.so"))).unwrap();
    }

    /// A file of the bench.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs gvmm with the arguments, which are split at spaces.
    pub fn gvmm(&self, arguments: &str) -> Answer {
        let mut command = Command::new(gvmm_built::program("gvmm"));
        command.args(arguments.split_whitespace()).current_dir(self.folder.path());
        command
            .env("GVMM_PLUGIN_PATH", self.path("plugins"))
            .env_remove("GVMM_LOG")
            .env("HOME", "/nonexistent");
        let output = command.stdin(Stdio::null()).output().unwrap();
        let folder = self.folder.path().to_str().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(folder, "DIR");
        Answer {
            code: output.status.code().expect("gvmm was not killed"),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    /// Writes the device tree of a machine with these arguments, which goes as far as a VM can be prepared without an
    /// accelerator.
    pub fn prepare(&self, arguments: &str) -> Answer {
        self.gvmm(&format!("--accel gunyah --dump-dtb tree.dtb {arguments}"))
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

/// An arm64 kernel image of so many bytes that does nothing (Linux, arch/arm64/booting, "Call the kernel image").
pub fn image(size: u64) -> Vec<u8> {
    let mut image = vec![0; usize::try_from(size).unwrap()];
    image[16..24].copy_from_slice(&size.to_le_bytes());
    image[24..32].copy_from_slice(&0b1010_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}
