//! `cargo xtask dist`: what a user installs, in one folder that runs from anywhere.
//!
//! Plugins and programs are found by asking cargo, so a new device needs no line here.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::apt::recreate;
use crate::build::{Build, Cross, TARGET};
use crate::process::{self, progress};
use crate::setup;
use crate::workspace::Workspace;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Target to build for, such as aarch64-unknown-linux-gnu; without it, this machine
    #[arg(long)]
    target: Option<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let cross = match options.target.as_deref() {
        Some(TARGET) => setup::ensure_cross(workspace)?,
        _ => Cross::default(),
    };
    let folder = make(&Build { workspace, target: options.target.as_deref(), cross: &cross })?;
    println!("{}", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds and lays out everything; returns the folder.
pub(crate) fn make(build: &Build) -> Result<PathBuf> {
    let workspace = build.workspace;
    progress(format!("building gvmm and its plugins for {}", build.target.unwrap_or("this machine")));
    let mut command = build.cargo("build");
    for package in workspace.programs().chain(workspace.plugins()) {
        command.args(["--package", &package.name]);
    }
    process::run(&mut command)?;

    let folder = workspace.target.join("dist").join(build.target.unwrap_or("host"));
    let plugins = folder.join("plugins");
    recreate(&folder)?;
    std::fs::create_dir(&plugins)?;
    let output = build.output();
    for program in workspace.programs().flat_map(|package| package.targets_of("bin")) {
        copy(&output.join(program), &folder.join(program))?;
    }
    for library in workspace.plugins().flat_map(|package| package.targets_of("cdylib")) {
        copy(&output.join(format!("lib{library}.so")), &plugins.join(format!("{library}.so")))?;
    }
    copy_matching(&workspace.root.join("plugins"), &plugins, |name| name.ends_with(".toml"))?;
    copy_matching(&workspace.root, &folder, |name| name.starts_with("LICENSE-"))?;
    if !folder.join("gvmm").exists() {
        bail!("no package of the workspace builds the program `gvmm`");
    }
    Ok(folder)
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

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
