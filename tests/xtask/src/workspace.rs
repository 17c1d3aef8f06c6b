//! Where things are: the checkout, its packages as cargo sees them, and the cache of downloads.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;

/// The checkout that this binary was built from.
pub(crate) struct Workspace {
    /// Folder of the root `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
    /// Downloads and what is made from them alone; survives `cargo clean`.
    pub(crate) cache: PathBuf,
    packages: Vec<Package>,
}

/// A member of the workspace.
#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

impl Workspace {
    /// The checkout of this binary.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .context("the xtask package has left its place in the workspace")?;
        Self::at(root)
    }

    /// Asks cargo for the layout; needs no network.
    pub(crate) fn at(root: &Path) -> Result<Self> {
        let root = root.to_path_buf();
        let text = process::output(
            Command::new(cargo()).args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(&root),
        )?;
        let metadata: Metadata = serde_json::from_str(&text).context("output of `cargo metadata`")?;
        Ok(Self {
            root,
            target: metadata.target_directory,
            cache: cache_folder()?,
            packages: metadata.packages,
        })
    }

    /// Members below `plugins/` that build a shared library: each is one plugin to ship.
    pub(crate) fn plugins(&self) -> impl Iterator<Item = &Package> {
        self.members_below("plugins").filter(|package| package.targets_of("cdylib").next().is_some())
    }

    /// Members outside `tests/` and `plugins/` with programs to ship.
    pub(crate) fn programs(&self) -> impl Iterator<Item = &Package> {
        let inner = ["tests", "plugins"].map(|folder| self.root.join(folder));
        self.packages
            .iter()
            .filter(move |package| !inner.iter().any(|folder| package.manifest_path.starts_with(folder)))
            .filter(|package| package.targets_of("bin").next().is_some())
    }

    /// Members below a folder of the checkout.
    pub(crate) fn members_below(&self, folder: &str) -> impl Iterator<Item = &Package> {
        let folder = self.root.join(folder);
        self.packages.iter().filter(move |package| package.manifest_path.starts_with(&folder))
    }
}

impl Package {
    /// Names of the package's targets of a kind (`bin`, `cdylib`, ...).
    pub(crate) fn targets_of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        self.targets
            .iter()
            .filter(move |target| target.kind.iter().any(|k| k == kind))
            .map(|target| target.name.as_str())
    }
}

/// The cargo that runs this binary, else the one on `PATH`.
pub(crate) fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn cache_folder() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("GVMM_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("gvmm")))
        .or_else(|| variable("HOME").map(|folder| folder.join(".cache/gvmm")))
        .context("no place for downloads: set HOME or GVMM_CACHE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_this_package_among_the_members_below_tests() {
        let workspace = Workspace::find().unwrap();
        assert!(workspace.members_below("tests").any(|package| package.name == "xtask"));
        assert!(workspace.programs().all(|package| package.name != "xtask"));
        assert!(workspace.root.join("Cargo.toml").is_file());
    }
}
