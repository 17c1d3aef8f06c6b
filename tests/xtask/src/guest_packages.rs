//! The arm64 side of the test bed, from Debian's own packages: a kernel, busybox, a peer VMM, e2fsprogs.
//!
//! The machine gets no foreign architecture. What is made from the packages stands in the cache until
//! [`RECIPE`] changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::{self, Apt, Packages};
use crate::images;
use crate::process::{self, progress};

/// Raise this whenever the files below are made differently.
const RECIPE: u32 = 3;
/// Meta package that names the current kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-arm64";
/// Programs of the outer guest, installed with the libraries they need.
const PROGRAMS: &[&str] = &[
    "libc6",
    "libgcc-s1",
    "busybox-static",
    "e2fsprogs",
    "passt",
    "pciutils",
    "qemu-system-arm",
    "qemu-utils",
];
/// Users of the outer guest; passt gives up its rights to be nobody.
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUPS: &str = "root:x:0:\nnogroup:x:65534:\n";
/// Modules that guests may load; what they depend on comes along.
const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "virtio-rng",
    "virtio_balloon",
    "virtio_input",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "vhost_vsock",
    "tun",
];
/// The folders of `usr/share` that programs need at run time: QEMU's firmware, and the names of PCI devices.
const SHARED_DATA: &[&str] = &["misc", "qemu"];

/// Files made from the packages.
pub(crate) struct Guest {
    /// Kernel of both levels of guest.
    pub(crate) kernel: PathBuf,
    /// Statically linked busybox.
    pub(crate) busybox: PathBuf,
    /// Module files by name, and `order`: a line for each of [`MODULES`] that names it and, before it, its
    /// dependencies in loading order.
    pub(crate) modules: PathBuf,
    /// Root file system (ext4) of the outer guest.
    pub(crate) base_image: PathBuf,
}

impl Guest {
    fn in_folder(folder: &Path) -> Self {
        Self {
            kernel: folder.join("Image"),
            busybox: folder.join("busybox"),
            modules: folder.join("modules"),
            base_image: folder.join("base.img"),
        }
    }
}

/// Makes the files unless they are in the cache.
pub(crate) fn ensure(cache: &Path) -> Result<Guest> {
    let folder = cache.join(format!("guest-{RECIPE}"));
    if !folder.exists() {
        let unfinished = cache.join("guest.tmp");
        apt::recreate(&unfinished)?;
        make(&cache.join("apt"), &unfinished)?;
        std::fs::rename(&unfinished, &folder)?;
    }
    Ok(Guest::in_folder(&folder))
}

fn make(apt_folder: &Path, folder: &Path) -> Result<()> {
    progress("downloading Debian's arm64 kernel and programs (60 MB, once)");
    let apt = Apt::new(apt_folder, Packages::Arm64)?;
    let packages = download(&apt)?;
    progress("making the root file system of the test bed");
    let root = folder.join("root");
    lay_out_root(&root)?;
    for package in &packages {
        apt::unpack(package, &root)?;
    }
    let guest = Guest::in_folder(folder);
    take_kernel(&root, &guest)?;
    std::fs::copy(root.join("usr/bin/busybox"), &guest.busybox)?;
    prune_shared_data(&root)?;
    images::ext4(&root, &guest.base_image, None)?;
    std::fs::remove_dir_all(&root)?;
    apt.clean()
}

/// Fetches the kernel and the programs; returns the package files.
fn download(apt: &Apt) -> Result<Vec<PathBuf>> {
    let kernel = apt.first_dependency(KERNEL).with_context(|| {
        format!(
            "the package sources of this machine offer no {KERNEL} for arm64: on a system that is not Debian, \
             set GVMM_APT_SOURCES to a sources.list of Debian 12 and install debian-archive-keyring"
        )
    })?;
    apt.with_dependencies(PROGRAMS)?;
    // Fetched alone: its dependencies are tools that build an initrd, which this bed has its own way for.
    apt.alone(&kernel)?;
    apt.fetched()
}

/// Creates the folders and links that Debian's packages and the outer guest's start expect.
fn lay_out_root(root: &Path) -> Result<()> {
    for folder in [
        "usr/bin", "usr/sbin", "usr/lib", "bed", "gvmm", "results", "tmp", "proc", "sys", "dev", "run",
        "root", "etc",
    ] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    for folder in ["bin", "sbin", "lib"] {
        std::os::unix::fs::symlink(format!("usr/{folder}"), root.join(folder))?;
    }
    std::fs::write(root.join("etc/passwd"), USERS)?;
    std::fs::write(root.join("etc/group"), GROUPS)?;
    Ok(())
}

fn prune_shared_data(root: &Path) -> Result<()> {
    for entry in std::fs::read_dir(root.join("usr/share"))? {
        let entry = entry?;
        if SHARED_DATA.iter().any(|kept| entry.file_name() == *kept) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Moves the kernel and the modules of [`MODULES`] out of the unpacked packages; drops the other modules.
fn take_kernel(root: &Path, guest: &Guest) -> Result<()> {
    let boot = root.join("boot");
    let image = std::fs::read_dir(&boot)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz-")))
        .context("the kernel package has no boot/vmlinuz-*")?;
    std::fs::copy(&image, &guest.kernel)?;
    std::fs::remove_dir_all(&boot)?;
    std::fs::create_dir(&boot)?;
    std::fs::copy(&guest.kernel, boot.join("Image"))?;

    std::fs::create_dir(&guest.modules)?;
    let all = root.join("usr/lib/modules");
    let mut files = BTreeMap::new();
    find_modules(&all, &mut files)?;
    let mut order = String::new();
    for name in MODULES {
        let mut chain = Vec::new();
        collect_dependencies(&module_name(name), &files, &guest.modules, &mut chain)?;
        // A name without a file is built into this kernel.
        if !chain.is_empty() {
            order += &format!("{} {}\n", module_name(name), chain.join(" "));
        }
    }
    std::fs::write(guest.modules.join("order"), order)?;
    std::fs::remove_dir_all(&all)?;
    Ok(())
}

/// File names use `-` and `_` at will; the kernel knows `_` only.
fn module_name(file: &str) -> String {
    file.replace('-', "_")
}

fn find_modules(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find_modules(&path, files)?;
        } else if let Some((name, "ko" | "ko.xz")) =
            entry.file_name().to_str().and_then(|name| name.split_once('.'))
        {
            files.insert(module_name(name), path);
        }
    }
    Ok(())
}

/// Appends a module after its dependencies, and puts the decompressed files into `into`.
fn collect_dependencies(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    into: &Path,
    chain: &mut Vec<String>,
) -> Result<()> {
    let Some(file) = files.get(name) else { return Ok(()) };
    if chain.iter().any(|known| known == name) {
        return Ok(());
    }
    let target = into.join(format!("{name}.ko"));
    if !target.exists() {
        let plain = if file.extension().is_some_and(|extension| extension == "xz") {
            let copy = into.join("unpacking.ko.xz");
            std::fs::copy(file, &copy)?;
            process::output(process::program("xz").arg("--decompress").arg(&copy))?;
            into.join("unpacking.ko")
        } else {
            file.clone()
        };
        std::fs::copy(&plain, &target)?;
    }
    let content = std::fs::read(&target)?;
    let Some(dependencies) = declared_dependencies(&content) else {
        bail!("{} declares no dependencies: not a kernel module?", file.display());
    };
    for dependency in dependencies {
        collect_dependencies(&module_name(&dependency), files, into, chain)?;
    }
    chain.push(name.to_owned());
    Ok(())
}

/// The `depends=` entry of a module's `.modinfo` section.
fn declared_dependencies(module: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = module.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let value = module.get(start..)?.split(|&byte| byte == 0).next()?;
    let text = std::str::from_utf8(value).ok()?;
    Some(text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF...license=GPL\0depends={depends}\0intree=Y\0").into_bytes()
    }

    #[test]
    fn reads_what_a_module_depends_on() {
        assert_eq!(declared_dependencies(&module("virtio,virtio_ring")).unwrap(), ["virtio", "virtio_ring"]);
        assert_eq!(declared_dependencies(&module("")).unwrap(), Vec::<String>::new());
        assert_eq!(declared_dependencies(b"no module"), None);
    }

    #[test]
    fn dependencies_come_before_the_module_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let into = tempfile::tempdir().unwrap();
        let mut files = BTreeMap::new();
        for (name, depends) in [("blk", "ring,core"), ("ring", "core"), ("core", ""), ("other", "")] {
            std::fs::write(folder.path().join(format!("{name}.ko")), module(depends)).unwrap();
        }
        find_modules(folder.path(), &mut files).unwrap();
        let mut chain = Vec::new();
        collect_dependencies("blk", &files, into.path(), &mut chain).unwrap();
        assert_eq!(chain, ["core", "ring", "blk"]);
        assert!(into.path().join("ring.ko").exists() && !into.path().join("other.ko").exists());
    }

    #[test]
    fn a_module_built_into_the_kernel_is_nothing_to_load() {
        let into = tempfile::tempdir().unwrap();
        let mut chain = Vec::new();
        collect_dependencies("virtio", &BTreeMap::new(), into.path(), &mut chain).unwrap();
        assert!(chain.is_empty());
    }
}
