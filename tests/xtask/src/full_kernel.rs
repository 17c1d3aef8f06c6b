//! Debian's arm64 kernel for real machines, for guests whose drivers the kernel for virtual machines lacks: keys and
//! lights at GPIO lines, sensors. Linux's driver of I2C over virtio, which Debian builds for neither, is built for it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{self, Apt, Packages};
use crate::kernel;
use crate::process::{self, progress};

/// Raise this whenever the files are made differently.
const RECIPE: u32 = 1;
/// Meta package that names the current kernel.
const KERNEL: &str = "linux-image-arm64";
/// Meta package that names the current sources.
const SOURCES: &str = "linux-source";
/// The driver that is built, by its place in the sources without `.c`.
const BUILT: &str = "drivers/i2c/busses/i2c-virtio";
/// Modules that guests may load; what they depend on comes along.
const MODULES: &[&str] =
    &["virtio_mmio", "virtio_pci", "virtio_blk", "evdev", "gpio_keys", "leds_gpio", "lm75", "i2c_virtio"];

/// Makes a folder with `Image` and `modules` (as [`kernel::take`] leaves them), unless the cache has it.
pub(crate) fn ensure(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join(format!("full-kernel-{RECIPE}"));
    if folder.exists() {
        return Ok(folder);
    }
    let unfinished = cache.join("full-kernel.tmp");
    apt::recreate(&unfinished)?;
    let driver = make(cache, &unfinished)?;
    if let Err(error) = driver {
        // Not kept: the next run tries again.
        progress(format!("going on without the driver i2c-virtio, which cannot be built: {error:#}"));
        return Ok(unfinished);
    }
    std::fs::rename(&unfinished, &folder)?;
    Ok(folder)
}

/// The inner result is that of building the driver, which only some tests want.
fn make(cache: &Path, folder: &Path) -> Result<Result<()>> {
    progress("downloading Debian's other arm64 kernel, and sources to build a driver for it (210 MB, once)");
    let arm64 = Apt::new(&cache.join("apt"), Packages::Arm64)?;
    let root = folder.join("root");
    std::fs::create_dir_all(root.join("usr/lib"))?;
    std::fs::create_dir(folder.join("build"))?;
    std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
    let image = arm64.first_dependency(KERNEL)?;
    apt::unpack(&arm64.file(&image)?, &root)?;
    let driver = build_driver(cache, &arm64, &image, folder).and_then(|module| {
        let name = module.file_name().context("a module has a name")?;
        std::fs::copy(&module, root.join(kernel::MODULES).join(name))?;
        Ok(())
    });
    kernel::take(&root, &folder.join("Image"), &folder.join("modules"), MODULES)?;
    for scratch in ["root", "build"] {
        std::fs::remove_dir_all(folder.join(scratch)).with_context(|| format!("cannot remove {scratch}"))?;
    }
    arm64.clean()?;
    Ok(driver)
}

/// Builds [`BUILT`] for a kernel; returns the module.
fn build_driver(cache: &Path, arm64: &Apt, image: &str, folder: &Path) -> Result<PathBuf> {
    let build = folder.join("build");
    let host = Apt::new(&cache.join("apt-host"), Packages::ThisMachine)?;
    let headers = image.replacen("linux-image-", "linux-headers-", 1);
    let sources = build.join("usr/src");
    apt::unpack(&arm64.file(&headers)?, &build)?;
    for package in arm64.dependencies(&headers)? {
        if package.starts_with("linux-headers-") {
            apt::unpack(&arm64.file(&package)?, &build)?;
            // The package names the place where it would be installed.
            let makefile = format!("include {}\n", sources.join(package).join("Makefile").display());
            std::fs::write(sources.join(&headers).join("Makefile"), makefile)?;
        } else if package.starts_with("linux-kbuild-") {
            apt::unpack(&host.file(&package)?, &build)?;
        }
    }
    let driver = build.join("driver");
    std::fs::create_dir(&driver)?;
    take_source(&host.file(&host.first_dependency(SOURCES)?)?, &driver)?;
    host.clean()?;
    let name = Path::new(BUILT).file_name().and_then(|name| name.to_str()).context("a driver has a name")?;
    std::fs::write(driver.join("Makefile"), format!("obj-m := {name}.o\n"))?;
    let mut make = process::program("make");
    make.arg("-C").arg(sources.join(&headers)).arg(format!("M={}", driver.display()));
    // The headers name a version of the compiler, whose cross compiler need not be the one that is here.
    make.args(["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", "CC=aarch64-linux-gnu-gcc", "modules"]);
    process::output(&mut make)?;
    let module = driver.join(format!("{name}.ko"));
    process::output(process::program("aarch64-linux-gnu-strip").arg("--strip-debug").arg(&module))?;
    Ok(module)
}

/// Takes the source of [`BUILT`] out of the package of the kernel's sources. The rest of these is never unpacked.
fn take_source(package: &Path, folder: &Path) -> Result<()> {
    const SCRIPT: &str = r#"dpkg-deb --fsys-tarfile "$1" 2>/dev/null |
        tar --extract --to-stdout --wildcards './usr/src/linux-source-*.tar.xz' 2>/dev/null |
        tar --extract --xz --directory "$2" --transform 's:.*/::' --occurrence --wildcards "*/$3.c""#;
    let mut shell = Command::new("sh");
    shell.args(["-c", SCRIPT, "sh"]).arg(package).arg(folder).arg(BUILT);
    process::output(&mut shell).map(drop)
}
