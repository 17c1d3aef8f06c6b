//! Tries to reach what it has not declared when a device is made, and says how far it came.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use gvmm_plugin_api::options::{OptionKind, PathAccess};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// What it declares.
    pub struct Options {
        /// A file that it may read.
        pub file: PathBuf = required("file", OptionKind::Path(PathAccess::Read)),
        /// A file that it does not declare.
        pub other: String = required("other", OptionKind::Text),
    }
}

fn create(options: Options, _: Services) -> Result<Device, String> {
    let attempts: [(&str, io::Result<()>); 8] = [
        ("declared file", File::open(&options.file).map(drop)),
        ("write of it", File::options().write(true).open(&options.file).map(drop)),
        ("other file", File::open(&options.other).map(drop)),
        ("library", File::open("/lib/ld-linux.so.2").or_else(|_| File::open("/etc/ld.so.cache")).map(drop)),
        ("network", TcpListener::bind("127.0.0.1:0").map(drop)),
        ("socket", UnixDatagram::unbound().map(drop)),
        ("exec", Command::new("/bin/true").status().map(drop)),
        ("ptrace", trace()),
    ];
    let told = attempts.map(|(what, result)| {
        let word = if result.is_ok() { "works" } else { "fails" };
        format!("{what} {word}")
    });
    Err(told.join(", "))
}

/// Whether the kernel answers at all: this process is nobody's tracer, so nothing comes of it.
fn trace() -> io::Result<()> {
    // Fits, process ids have 31 bits.
    let own = std::process::id().cast_signed();
    // SAFETY: fails in any case, and takes no addresses.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, own, 0, 0) };
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}

export_plugin! {
    id: "org.gvmm.bad.breaks-out",
    name: "breaks_out",
    vendor: "gvmm",
    url: "",
    description: "Tries to reach what it has not declared",
    kind: Virtio(4),
    options: Options,
    create: create,
}
