//! Builds for aarch64: finds or installs the Rust target, then runs cargo with it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::debian_rust;
use crate::process::{self, find_program, progress};
use crate::workspace::{Workspace, cargo};

/// What the machines that gvmm is for run.
pub(crate) const TARGET: &str = "aarch64-unknown-linux-gnu";

/// How cargo is run to build for [`TARGET`].
#[derive(Default)]
pub(crate) struct Cross {
    /// The compiler to use instead of the toolchain's own.
    compiler: Option<PathBuf>,
}

/// What to build, and for what.
pub(crate) struct Build<'a> {
    pub(crate) workspace: &'a Workspace,
    /// `None` builds for this machine.
    pub(crate) target: Option<&'a str>,
    pub(crate) cross: &'a Cross,
}

impl Build<'_> {
    /// A cargo command in release mode; `subcommand` is `build` or `rustc`.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = self.debug_cargo(subcommand);
        command.arg("--release");
        command
    }

    /// The same without optimisation.
    pub(crate) fn debug_cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(cargo());
        command.current_dir(&self.workspace.root).arg(subcommand);
        if let Some(target) = self.target {
            command.args(["--target", target]);
            if target == TARGET {
                command.envs(self.cross.compiler.iter().map(|compiler| ("RUSTC", compiler)));
            }
        }
        command
    }

    /// Where cargo puts what it builds.
    pub(crate) fn output(&self) -> PathBuf {
        self.folder().join("release")
    }

    /// The same without optimisation.
    pub(crate) fn debug_output(&self) -> PathBuf {
        self.folder().join("debug")
    }

    fn folder(&self) -> PathBuf {
        let target = &self.workspace.target;
        self.target.map_or_else(|| target.clone(), |name| target.join(name))
    }

    /// Builds programs that need nothing of the system they run on; returns their files.
    pub(crate) fn static_programs(&self, package: &str, names: &[&str]) -> Result<Vec<PathBuf>> {
        for name in names {
            let mut command = self.cargo("rustc");
            command.args(["--package", package, "--bin", name, "--", "-C", "target-feature=+crt-static"]);
            process::run(&mut command)?;
        }
        Ok(names.iter().map(|name| self.output().join(name)).collect())
    }
}

/// Makes sure that Rust code can be built for [`TARGET`].
pub(crate) fn ensure_cross(workspace: &Workspace) -> Result<Cross> {
    if has_target("rustc", workspace) {
        return Ok(Cross::default());
    }
    let mut by_rustup = Command::new("rustup");
    by_rustup.args(["target", "add", TARGET]).current_dir(&workspace.root);
    if find_program("rustup").is_some() {
        progress(format!("installing the Rust target {TARGET}"));
        if process::run(&mut by_rustup).is_ok() && has_target("rustc", workspace) {
            return Ok(Cross::default());
        }
    }
    let compiler = debian_rust::ensure(&workspace.cache)
        .with_context(|| format!("neither rustup nor Debian gives a standard library for {TARGET}"))?;
    Ok(Cross { compiler: Some(compiler) })
}

fn has_target(rustc: &str, workspace: &Workspace) -> bool {
    let mut command = Command::new(rustc);
    command.args(["--print", "target-libdir", "--target", TARGET]).current_dir(&workspace.root);
    process::output(&mut command).is_ok_and(|folder| has_std(Path::new(folder.trim())))
}

fn has_std(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().as_encoded_bytes().starts_with(b"libstd-"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_counts_as_there_only_with_its_standard_library() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!has_std(folder.path()));
        assert!(!has_std(&folder.path().join("missing")));
        std::fs::write(folder.path().join("libstd-0123.rlib"), "").unwrap();
        assert!(has_std(folder.path()));
    }
}
