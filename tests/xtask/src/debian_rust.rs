//! Debian's own Rust compiler with its arm64 standard library, for machines where rustup cannot fetch.
//!
//! `rustc-web` is the recent compiler that Debian keeps in a stable release. It is unpacked into the cache
//! and runs from there: the machine's packages stay as they are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{self, Apt, Packages};
use crate::process::{self, progress};

const COMPILER: &str = "rustc-web";
const STANDARD_LIBRARY: &str = "libstd-rust-web-dev";

/// Unpacks the compiler unless the cache has it; returns the program to use as `RUSTC`.
pub(crate) fn ensure(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join("debian-rust");
    let program = folder.join("rustc");
    if !program.exists() {
        let unfinished = cache.join("debian-rust.tmp");
        apt::recreate(&unfinished)?;
        make(cache, &unfinished, &folder)?;
        std::fs::rename(&unfinished, &folder)?;
    }
    Ok(program)
}

fn make(cache: &Path, unfinished: &Path, folder: &Path) -> Result<()> {
    progress(format!("downloading Debian's {COMPILER} with its arm64 standard library (180 MB, once)"));
    let host = Apt::new(&cache.join("apt-host"), Packages::ThisMachine)?;
    host.with_dependencies(&[COMPILER])?;
    let arm64 = Apt::new(&cache.join("apt"), Packages::Arm64)?;
    arm64.alone(STANDARD_LIBRARY)?;
    let root = unfinished.join("root");
    std::fs::create_dir(&root)?;
    for package in host.fetched()?.into_iter().chain(arm64.fetched()?) {
        apt::unpack(&package, &root)?;
    }
    host.clean()?;
    arm64.clean()?;

    let libraries = format!("{}/root/usr/lib/{}-linux-gnu", folder.display(), std::env::consts::ARCH);
    let wrapper = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH={} exec {} \"$@\"\n",
        process::shell_quote(&libraries),
        process::shell_quote(&folder.join("root/usr/bin/rustc").to_string_lossy()),
    );
    let program = unfinished.join("rustc");
    std::fs::write(&program, wrapper)?;
    process::run(Command::new("chmod").arg("755").arg(&program))
        .context("cannot make the compiler executable")
}
