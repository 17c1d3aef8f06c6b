//! Images that guests start from: initrd, root disk, and file systems made from a folder.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cpio::Archive;
use crate::guest_packages::Guest;
use crate::process;
use crate::workspace::Workspace;

/// Room of the guest's root disk in MiB: small, so that copies of it are cheap.
const GUEST_DISK_MIB: u64 = 64;

/// Makes an ext4 image with a folder's content; `None` makes it just large enough.
pub(crate) fn ext4(folder: &Path, image: &Path, size_mib: Option<u64>) -> Result<()> {
    let size = match size_mib {
        Some(size) => size,
        None => {
            let used = process::output(process::program("du").args(["-sm", "--apparent-size"]).arg(folder))?;
            let used = used.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
            used.context("output of `du`")? * 9 / 8 + 16
        }
    };
    if image.exists() {
        std::fs::remove_file(image).with_context(|| format!("cannot replace {}", image.display()))?;
    }
    let mut command = process::program("mke2fs");
    command
        .args(["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"])
        .arg(folder)
        .arg(image)
        .arg(format!("{size}M"));
    process::output(&mut command).map(drop)
}

/// Makes the initrd of both levels of guest: busybox, modules, and `tests/e2e/bed/init` to load them.
pub(crate) fn initrd(workspace: &Workspace, guest: &Guest, file: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "root", "run", "sys", "tmp"] {
        archive.folder(folder);
    }
    archive
        .device("dev/console", 5, 1)
        .device("dev/null", 1, 3)
        .executable("bin/busybox", &read(&guest.busybox)?)
        .symlink("bin/sh", "busybox");
    archive.executable("init", &read(&bed_file(workspace, "init"))?).symlink("run/tools", "/tools");
    let mut modules: Vec<_> = std::fs::read_dir(&guest.modules)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    modules.sort();
    for module in modules {
        let name = module.file_name().and_then(|name| name.to_str()).context("odd module name")?;
        archive.file(&format!("modules/{name}"), &read(&module)?);
    }
    archive.write(file)
}

/// Makes the root disk of the guest: busybox with an init that ends in a shell on the console.
pub(crate) fn guest_disk(workspace: &Workspace, guest: &Guest, scratch: &Path, image: &Path) -> Result<()> {
    if scratch.exists() {
        std::fs::remove_dir_all(scratch)?;
    }
    for folder in ["bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp"] {
        std::fs::create_dir_all(scratch.join(folder))?;
    }
    let busybox = read(&guest.busybox)?;
    std::fs::copy(&guest.busybox, scratch.join("bin/busybox"))?;
    for applet in applets(&busybox)?.iter().filter(|name| *name != "busybox" && *name != "init") {
        std::os::unix::fs::symlink("busybox", scratch.join("bin").join(applet))?;
    }
    std::os::unix::fs::symlink("../bin/busybox", scratch.join("sbin/init"))?;
    for entry in std::fs::read_dir(bed_file(workspace, "etc"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), scratch.join("etc").join(entry.file_name()))?;
    }
    ext4(scratch, image, Some(GUEST_DISK_MIB))
}

/// An archive to append to an initrd: its files replace or join those of the initrd.
pub(crate) fn overlay(files: &[(&str, &Path)], file: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for (name, source) in files {
        archive.executable(name, &read(source)?);
    }
    archive.write(file)
}

/// A file of the test bed's own scripts.
pub(crate) fn bed_file(workspace: &Workspace, name: &str) -> std::path::PathBuf {
    workspace.root.join("tests/e2e/bed").join(name)
}

/// The names under which a busybox can be called, from the sorted table inside it: the program itself cannot
/// be asked, since it is built for another machine.
fn applets(busybox: &[u8]) -> Result<Vec<String>> {
    const START: &[u8] = b"[\0[[\0";
    let Some(start) = busybox.windows(START.len()).position(|window| window == START) else {
        bail!("this busybox has no table of applets");
    };
    let is_name = |name: &[u8]| {
        !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"[-_".contains(byte))
    };
    Ok(busybox[start..]
        .split(|&byte| byte == 0)
        .take_while(|name| is_name(name))
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_applets_are_the_table_and_nothing_behind_it() {
        let busybox = b"\x7fELF stuff\0[\0[[\0acpid\0run-parts\0zcat\0\0noise\0";
        assert_eq!(applets(busybox).unwrap(), ["[", "[[", "acpid", "run-parts", "zcat"]);
        assert!(applets(b"no table").is_err());
    }

    #[test]
    fn an_image_holds_the_folder_and_is_replaced_when_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let content = folder.path().join("content");
        std::fs::create_dir(&content).unwrap();
        std::fs::write(content.join("hello"), "gvmm").unwrap();
        let image = folder.path().join("image");
        for _ in 0..2 {
            ext4(&content, &image, Some(8)).unwrap();
        }
        assert_eq!(image.metadata().unwrap().len(), 8 << 20);
        let text =
            process::output(process::program("debugfs").args(["-R", "cat /hello"]).arg(&image)).unwrap();
        assert_eq!(text, "gvmm");
    }
}
