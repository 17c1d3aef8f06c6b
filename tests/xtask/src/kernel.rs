//! Kernels and their modules out of unpacked packages of Debian's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process;

/// Where a package has its modules.
pub(crate) const MODULES: &str = "usr/lib/modules";

/// Copies a package's kernel to `image`; to the folder `modules` those that are named, what they depend on, and `order`:
/// a line for each of the named that has it and, before it, its dependencies in loading order.
pub(crate) fn take(root: &Path, image: &Path, modules: &Path, names: &[&str]) -> Result<()> {
    let packed = std::fs::read_dir(root.join("boot"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz-")))
        .context("the kernel package has no boot/vmlinuz-*")?;
    std::fs::copy(&packed, image)?;
    std::fs::create_dir(modules)?;
    let mut files = BTreeMap::new();
    find_modules(&root.join(MODULES), &mut files)?;
    let mut order = String::new();
    for name in names {
        let mut chain = Vec::new();
        collect_dependencies(&module_name(name), &files, modules, &mut chain)?;
        // A name without a file is built into this kernel.
        if !chain.is_empty() {
            order += &format!("{} {}\n", module_name(name), chain.join(" "));
        }
    }
    std::fs::write(modules.join("order"), order)?;
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
