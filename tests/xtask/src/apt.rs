//! An `apt-get` that works on folders of its own: fetches and verifies packages without root, and without
//! touching what the machine has installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// Shares only sources and keys with the machine's own apt.
pub(crate) struct Apt {
    configuration: PathBuf,
    archives: PathBuf,
    /// What refreshing the package lists said, if it failed: the cause of what goes wrong later.
    refresh: Result<(), String>,
}

/// Whose packages are fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packages {
    /// For arm64, with every dependency.
    Arm64,
    /// For this machine, with the dependencies that it lacks.
    ThisMachine,
}

impl Apt {
    /// Fetches package lists into `folder`. Sources of third parties that have nothing for the architecture
    /// fail without harm, so a failure counts only once a package is not found.
    pub(crate) fn new(folder: &Path, packages: Packages) -> Result<Self> {
        let archives = folder.join("archives");
        recreate(&archives)?;
        for inner in [folder.join("lists/partial"), archives.join("partial")] {
            std::fs::create_dir_all(&inner).with_context(|| format!("cannot create {}", inner.display()))?;
        }
        std::fs::write(folder.join("status"), "")?;
        let configuration = folder.join("apt.conf");
        std::fs::write(&configuration, configuration_text(folder, packages))?;
        let mut apt = Self { configuration, archives, refresh: Ok(()) };
        apt.refresh = process::output(apt.command("apt-get").args(["update", "-qq"]))
            .map(drop)
            .map_err(|error| format!("{error:#}"));
        Ok(apt)
    }

    /// Fetches packages with what they depend on.
    pub(crate) fn with_dependencies(&self, packages: &[&str]) -> Result<()> {
        let mut command = self.command("apt-get");
        command.args(["install", "-y", "-qq", "--download-only"]).args(packages);
        self.explained(process::output(&mut command)).map(drop)
    }

    /// Fetches one package and nothing else.
    pub(crate) fn alone(&self, package: &str) -> Result<()> {
        let mut command = self.command("apt-get");
        command.args(["download", "-qq", package]).current_dir(&self.archives);
        self.explained(process::output(&mut command)).map(drop)
    }

    /// Fetches one package and nothing else; returns its file.
    pub(crate) fn file(&self, package: &str) -> Result<PathBuf> {
        self.alone(package)?;
        let begins = format!("{package}_");
        let is_it = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(begins.as_bytes()))
        };
        self.fetched()?.into_iter().find(is_it).with_context(|| format!("package {package} was not fetched"))
    }

    /// The packages that `package` depends on.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache");
        let text = self.explained(process::output(command.args(["depends", "--important", package])))?;
        let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(str::to_owned).collect())
    }

    /// The first package that `package` depends on.
    pub(crate) fn first_dependency(&self, package: &str) -> Result<String> {
        let first = self.dependencies(package)?.into_iter().next();
        first.with_context(|| format!("package {package} depends on nothing"))
    }

    /// The package files fetched so far.
    pub(crate) fn fetched(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.archives)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Deletes the package files.
    pub(crate) fn clean(&self) -> Result<()> {
        recreate(&self.archives)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = process::program(program);
        command
            .env("APT_CONFIG", &self.configuration)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        command
    }

    fn explained<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match &self.refresh {
            Ok(()) => error,
            Err(cause) => error.context(cause.clone()),
        })
    }
}

fn configuration_text(folder: &Path, packages: Packages) -> String {
    let place = folder.display();
    let mut text = format!(
        "APT::Install-Recommends \"false\";\n\
         APT::Sandbox::User \"\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Dir::State \"{place}\";\n\
         Dir::State::lists \"{place}/lists\";\n\
         Dir::Cache \"{place}\";\n\
         Dir::Cache::archives \"{place}/archives\";\n"
    );
    if packages == Packages::Arm64 {
        // An empty list of installed packages makes apt fetch every dependency.
        text += &format!(
            "APT::Architecture \"arm64\";\n\
             APT::Architectures {{ \"arm64\"; }};\n\
             Dir::State::status \"{place}/status\";\n"
        );
    }
    if let Some(sources) = std::env::var_os("GVMM_APT_SOURCES") {
        let sources = Path::new(&sources).display();
        text += &format!("Dir::Etc::sourcelist \"{sources}\";\nDir::Etc::sourceparts \"-\";\n");
    }
    text
}

/// Unpacks a package file without running its scripts.
pub(crate) fn unpack(package: &Path, root: &Path) -> Result<()> {
    let archive = root.with_extension("tar");
    let mut packed = process::program("dpkg-deb");
    process::run(packed.arg("--fsys-tarfile").arg(package).stdout(std::fs::File::create(&archive)?))?;
    let mut tar = process::program("tar");
    tar.args(["--extract", "--no-same-owner", "--keep-directory-symlink"]);
    process::output(tar.arg("--file").arg(&archive).arg("--directory").arg(root))?;
    std::fs::remove_file(&archive)?;
    Ok(())
}

/// Leaves an empty folder.
pub(crate) fn recreate(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_for_arm64_ignore_what_this_machine_has() {
        let text = configuration_text(Path::new("/cache/apt"), Packages::Arm64);
        assert!(text.contains("APT::Architectures { \"arm64\"; };"), "{text}");
        assert!(text.contains("Dir::State::status \"/cache/apt/status\";"), "{text}");
    }

    #[test]
    fn packages_for_this_machine_leave_out_what_it_has() {
        let text = configuration_text(Path::new("/cache/apt"), Packages::ThisMachine);
        assert!(!text.contains("Dir::State::status"), "{text}");
        assert!(text.contains("Dir::Cache::archives \"/cache/apt/archives\";"), "{text}");
    }
}
