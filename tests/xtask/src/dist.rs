//! `cargo xtask dist`: what a user installs, in one folder that runs from anywhere.
//!
//! Plugins and programs are found by asking cargo, so a new device needs no line here.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::apt::recreate;
use crate::build::{Build, Cross, TARGET};
use crate::process::{self, progress};
use crate::workspace::Workspace;
use crate::{libc_bundle, setup};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Target to build for, such as aarch64-unknown-linux-gnu; without it, this machine
    #[arg(long)]
    target: Option<String>,
    /// Add the C library, for systems that have none that gvmm can use, such as Android
    #[arg(long)]
    with_libc: bool,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let cross = match options.target.as_deref() {
        Some(TARGET) => setup::ensure_cross(workspace)?,
        _ => Cross::default(),
    };
    let build = Build { workspace, target: options.target.as_deref(), cross: &cross };
    let mut folder = make(&build)?;
    if options.with_libc {
        folder = libc_bundle::add(&build, &folder)?;
    }
    println!("{}", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds and lays out everything; returns the folder.
pub(crate) fn make(build: &Build) -> Result<PathBuf> {
    let workspace = build.workspace;
    progress(format!("building gvmm and its plugins for {}", build.target.unwrap_or("this machine")));
    let mut command = build.cargo("build");
    select(workspace, &mut command);
    process::run(&mut command)?;

    let folder = workspace.target.join("dist").join(build.target.unwrap_or("host"));
    lay_out(workspace, &build.output(), &folder)?;
    Ok(folder)
}

/// Copies what was built, and what goes with it, into a new folder.
fn lay_out(workspace: &Workspace, output: &Path, folder: &Path) -> Result<()> {
    let plugins = folder.join("plugins");
    recreate(folder)?;
    std::fs::create_dir(&plugins)?;
    for program in workspace.programs().flat_map(|package| package.targets_of("bin")) {
        copy(&output.join(program), &folder.join(program))?;
    }
    for library in workspace.plugins().flat_map(|package| package.targets_of("cdylib")) {
        copy(&output.join(format!("lib{library}.so")), &plugins.join(format!("{library}.so")))?;
    }
    copy_matching(&workspace.root.join("plugins"), &plugins, |name| name.ends_with(".toml"))?;
    copy_matching(&workspace.root, folder, |name| name.starts_with("LICENSE-"))?;
    if !folder.join("gvmm").exists() {
        bail!("no package of the workspace builds the program `gvmm`");
    }
    Ok(())
}

/// Names the packages that are shipped to a command of cargo.
pub(crate) fn select(workspace: &Workspace, command: &mut Command) {
    for package in workspace.programs().chain(workspace.plugins()) {
        command.args(["--package", &package.name]);
    }
}

fn copy_matching(from: &Path, to: &Path, matches: impl Fn(&str) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() && entry.file_name().to_str().is_some_and(&matches) {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Copies a file, with its mode.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    /// Copies the sources of the checkout, without what is built from them.
    fn copy_sources(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in from.read_dir().unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            if name == "target" || name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                copy_sources(&entry.path(), &to.join(name));
            } else {
                std::fs::copy(entry.path(), to.join(name)).unwrap();
            }
        }
    }

    /// Makes a device `lamp` of the one that every new device begins as.
    fn add_device(root: &Path) {
        let (from, to) = (root.join("tests/counter"), root.join("plugins/lamp"));
        for file in ["Cargo.toml", "src/lib.rs", "src/device.rs", "src/device_test.rs"] {
            let text = std::fs::read_to_string(from.join(file)).unwrap().replace("counter", "lamp");
            std::fs::create_dir_all(to.join(file).parent().unwrap()).unwrap();
            std::fs::write(to.join(file), text).unwrap();
        }
    }

    #[test]
    fn a_new_device_is_built_shipped_and_listed_without_a_change_outside_of_its_folder() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("checkout");
        copy_sources(&Workspace::find().unwrap().root, &root);
        let before = Workspace::at(&root).unwrap().plugins().count();
        add_device(&root);
        let workspace = Workspace::at(&root).unwrap();
        assert_eq!(workspace.plugins().count(), before + 1);
        let mut command = Command::new("cargo");
        select(&workspace, &mut command);
        assert!(command.get_args().any(|argument| argument == "lamp"));

        // In place of what that would build: the library that the device has been made of, and empty files.
        let output = scratch.path().join("output");
        std::fs::create_dir(&output).unwrap();
        for program in workspace.programs().flat_map(|package| package.targets_of("bin")) {
            std::fs::write(output.join(program), "").unwrap();
        }
        for library in workspace.plugins().flat_map(|package| package.targets_of("cdylib")) {
            let file = output.join(format!("lib{library}.so"));
            std::fs::copy(gvmm_built::plugin("counter"), file).unwrap();
        }
        let folder = scratch.path().join("dist");
        lay_out(&workspace, &output, &folder).unwrap();
        let mut list = Command::new(gvmm_built::program("gvmm-plugin"));
        list.arg("list").env("GVMM_PLUGIN_PATH", folder.join("plugins")).stderr(Stdio::inherit());
        let text = String::from_utf8(list.output().unwrap().stdout).unwrap();
        assert!(text.lines().any(|line| line.starts_with("lamp ") && line.contains(" mmio ")), "{text}");
    }
}
