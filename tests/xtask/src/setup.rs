//! Installs what is missing, by the package clients of the machine: Debian's `apt-get` and `rustup`.
//!
//! Nothing is asked of the network when nothing is missing, so a machine that ran this once works offline.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::build::{self, Cross, TARGET};
use crate::full_kernel;
use crate::guest_packages::{self, Guest, Wanted};
use crate::process::{self, find_program, progress};
use crate::workspace::{Workspace, cargo};

/// What the other commands build and boot with.
pub(crate) struct Ready {
    pub(crate) guest: Guest,
    pub(crate) cross: Cross,
}

/// `cargo xtask setup`.
pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    ensure(workspace)?;
    ensure_full_kernel(workspace)?;
    progress(format!("ready; downloads are kept in {}", workspace.cache.display()));
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing for the test bed.
pub(crate) fn ensure(workspace: &Workspace) -> Result<Ready> {
    let _lock = lock(workspace)?;
    install_host_packages(&[QEMU, CROSS_COMPILER, CROSS_LIBC, MKE2FS, XZ])?;
    let cross = build::ensure_cross(workspace)?;
    fetch_crates(workspace)?;
    let guest = guest_packages::ensure(&workspace.cache, Wanted::Bed)?;
    Ok(Ready { guest, cross })
}

/// Installs what is missing for guests on this machine's own hypervisor.
pub(crate) fn ensure_native(workspace: &Workspace) -> Result<Guest> {
    let _lock = lock(workspace)?;
    install_host_packages(&[MKE2FS, XZ])?;
    guest_packages::ensure(&workspace.cache, Wanted::Guest)
}

/// Downloads the kernel that some tests want beside the usual one; returns its folder.
pub(crate) fn ensure_full_kernel(workspace: &Workspace) -> Result<PathBuf> {
    let _lock = lock(workspace)?;
    install_host_packages(&[MAKE, XZ])?;
    full_kernel::ensure(&workspace.cache)
}

/// Installs the cross compiler and the Rust target alone.
pub(crate) fn ensure_cross(workspace: &Workspace) -> Result<Cross> {
    let _lock = lock(workspace)?;
    install_host_packages(&[CROSS_COMPILER, CROSS_LIBC])?;
    build::ensure_cross(workspace)
}

/// Fetches the crates of every package for both architectures, so that no later command needs a network.
fn fetch_crates(workspace: &Workspace) -> Result<()> {
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut fetch = Command::new(cargo());
    fetch.args(["fetch", "--quiet", "--target", TARGET, "--target", &host]);
    process::run(fetch.current_dir(&workspace.root))
}

/// Keeps two commands from setting up at once.
fn lock(workspace: &Workspace) -> Result<File> {
    let folder = &workspace.cache;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Something that a Debian package provides on this machine.
struct Need {
    probe: Probe,
    package: &'static str,
}

enum Probe {
    Program(&'static str),
    /// Any of these files.
    File(&'static [&'static str]),
}

const QEMU: Need = Need { probe: Probe::Program("qemu-system-aarch64"), package: "qemu-system-arm" };
const CROSS_COMPILER: Need =
    Need { probe: Probe::Program("aarch64-linux-gnu-gcc"), package: "gcc-aarch64-linux-gnu" };
const CROSS_LIBC: Need = Need {
    probe: Probe::File(&["/usr/aarch64-linux-gnu/lib/libc.a", "/usr/lib/aarch64-linux-gnu/libc.a"]),
    package: "libc6-dev-arm64-cross",
};
const MAKE: Need = Need { probe: Probe::Program("make"), package: "make" };
/// Unpacks kernel modules and sources.
const XZ: Need = Need { probe: Probe::Program("xz"), package: "xz-utils" };
const MKE2FS: Need = Need { probe: Probe::Program("mke2fs"), package: "e2fsprogs" };

impl Need {
    fn is_met(&self) -> bool {
        match self.probe {
            Probe::Program(name) => find_program(name).is_some(),
            Probe::File(files) => files.iter().any(|file| Path::new(file).exists()),
        }
    }
}

fn install_host_packages(needs: &[Need]) -> Result<()> {
    let missing: Vec<_> = needs.iter().filter(|need| !need.is_met()).map(|need| need.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing)?;
    match needs.iter().find(|need| !need.is_met()) {
        None => Ok(()),
        Some(need) => bail!("package {} is installed but does not provide what it should", need.package),
    }
}

/// Installs Debian packages on this machine, as root or through sudo.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if find_program("apt-get").is_none() {
        bail!(
            "this set-up installs packages with apt-get, which this machine lacks; \
             install by hand what Debian calls: {list}"
        );
    }
    progress(format!("installing {list}"));
    let install = || {
        let mut command = as_root("apt-get")?;
        command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
        process::output(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    // Package lists may be missing (containers) or out of date: only then refresh them.
    if install().is_err() {
        process::output(as_root("apt-get")?.args(["update", "-qq"]))?;
        install().with_context(|| format!("cannot install {list}"))?;
    }
    Ok(())
}

fn as_root(program: &str) -> Result<Command> {
    if process::output(Command::new("id").arg("-u"))?.trim() == "0" {
        return Ok(process::program(program));
    }
    match find_program("sudo") {
        Some(sudo) => {
            let mut command = Command::new(sudo);
            command.arg(program);
            Ok(command)
        }
        None => bail!("installing packages needs root: run this as root or install sudo"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_need_is_met_by_what_is_there_and_by_nothing_else() {
        assert!(Need { probe: Probe::Program("sh"), package: "dash" }.is_met());
        assert!(!Need { probe: Probe::Program("no-such-program-of-ours"), package: "none" }.is_met());
        assert!(Need { probe: Probe::File(&["/no/such/file", "/etc/passwd"]), package: "any" }.is_met());
        assert!(!Need { probe: Probe::File(&["/no/such/file"]), package: "none" }.is_met());
    }
}
