//! The arm64 side of the test bed, from Debian's own packages: a kernel, busybox, a peer VMM, e2fsprogs.
//!
//! The machine gets no foreign architecture. What is made from the packages stands in the cache until
//! [`RECIPE`] changes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::{self, Apt, Packages};
use crate::process::progress;
use crate::{images, kernel};

/// Raise this whenever the files below are made differently.
const RECIPE: u32 = 3;
/// Meta package that names the current kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-arm64";
/// The program of guests: statically linked, so that it needs no other package.
const BUSYBOX: &str = "busybox-static";
/// Programs of the outer guest beside [`BUSYBOX`], installed with the libraries they need.
const PROGRAMS: &[&str] =
    &["libc6", "libgcc-s1", "e2fsprogs", "passt", "pciutils", "qemu-system-arm", "qemu-utils"];
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
    /// Root file system (ext4) of the outer guest; missing where only a guest was [wanted](Wanted).
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

/// Whose files are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The guest's alone: there is no [`Guest::base_image`].
    Guest,
    /// The outer guest's as well.
    Bed,
}

/// Makes the files unless they are in the cache.
pub(crate) fn ensure(cache: &Path, wanted: Wanted) -> Result<Guest> {
    let bed = cache.join(format!("guest-{RECIPE}"));
    let folder = match wanted {
        // The test bed's files have the guest's among them.
        Wanted::Guest if !bed.exists() => cache.join(format!("guest-alone-{RECIPE}")),
        Wanted::Guest | Wanted::Bed => bed,
    };
    if !folder.exists() {
        let unfinished = cache.join("guest.tmp");
        apt::recreate(&unfinished)?;
        make(&cache.join("apt"), &unfinished, wanted)?;
        std::fs::rename(&unfinished, &folder)?;
    }
    Ok(Guest::in_folder(&folder))
}

fn make(apt_folder: &Path, folder: &Path, wanted: Wanted) -> Result<()> {
    progress(match wanted {
        Wanted::Guest => "downloading Debian's arm64 kernel and busybox (22 MB, once)",
        Wanted::Bed => "downloading Debian's arm64 kernel and programs (60 MB, once)",
    });
    let apt = Apt::new(apt_folder, Packages::Arm64)?;
    let packages = download(&apt, wanted)?;
    let root = folder.join("root");
    lay_out_root(&root)?;
    for package in &packages {
        apt::unpack(package, &root)?;
    }
    let guest = Guest::in_folder(folder);
    take_kernel(&root, &guest)?;
    std::fs::copy(root.join("usr/bin/busybox"), &guest.busybox)?;
    if wanted == Wanted::Bed {
        progress("making the root file system of the test bed");
        prune_shared_data(&root)?;
        images::ext4(&root, &guest.base_image, None)?;
    }
    std::fs::remove_dir_all(&root)?;
    apt.clean()
}

/// Fetches the kernel and the programs; returns the package files.
fn download(apt: &Apt, wanted: Wanted) -> Result<Vec<PathBuf>> {
    let kernel = apt.first_dependency(KERNEL).with_context(|| {
        format!(
            "the package sources of this machine offer no {KERNEL} for arm64: on a system that is not Debian, \
             set GVMM_APT_SOURCES to a sources.list of Debian 12 and install debian-archive-keyring"
        )
    })?;
    match wanted {
        Wanted::Guest => apt.alone(BUSYBOX)?,
        Wanted::Bed => apt.with_dependencies(&[&[BUSYBOX], PROGRAMS].concat())?,
    }
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

/// Takes the kernel and the modules of [`MODULES`] out of the unpacked packages; drops the other modules.
fn take_kernel(root: &Path, guest: &Guest) -> Result<()> {
    kernel::take(root, &guest.kernel, &guest.modules, MODULES)?;
    let boot = root.join("boot");
    std::fs::remove_dir_all(&boot)?;
    std::fs::create_dir(&boot)?;
    std::fs::copy(&guest.kernel, boot.join("Image"))?;
    std::fs::remove_dir_all(root.join(kernel::MODULES))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_alone_takes_what_was_made_for_the_test_bed() {
        let cache = tempfile::tempdir().unwrap();
        let alone = cache.path().join(format!("guest-alone-{RECIPE}"));
        std::fs::create_dir(&alone).unwrap();
        assert_eq!(ensure(cache.path(), Wanted::Guest).unwrap().kernel, alone.join("Image"));
        let bed = cache.path().join(format!("guest-{RECIPE}"));
        std::fs::create_dir(&bed).unwrap();
        for wanted in [Wanted::Guest, Wanted::Bed] {
            assert_eq!(ensure(cache.path(), wanted).unwrap().kernel, bed.join("Image"));
        }
    }
}
