//! A copy of what users install that brings the C library along, for systems without one that gvmm can use.
//!
//! The programs lie in `lib/` with the library and its loader. In their place is a script each, which names the program
//! to the loader: how a program finds its loader is written into it as an absolute path, and this folder has none.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::recreate;
use crate::build::{Build, TARGET};
use crate::dist::copy;
use crate::process::{self, progress};

/// What programs and plugins need beside the loader.
const LIBRARIES: &[&str] = &["libc.so.6", "libgcc_s.so.1", "libm.so.6"];

/// Makes the copy of a folder that [`crate::dist::make`] made, beside it; returns it.
pub(crate) fn add(build: &Build, dist: &Path) -> Result<PathBuf> {
    let (compiler, arch) = match build.target {
        None => ("cc", std::env::consts::ARCH),
        Some(TARGET) => ("aarch64-linux-gnu-gcc", "aarch64"),
        Some(other) => bail!("--with-libc: no compiler is known that has the C library for {other}"),
    };
    progress("adding the C library of this machine's compiler");
    let loader = loader(arch)?;
    let mut files = vec![of_compiler(compiler, loader)?];
    for library in LIBRARIES {
        files.push(of_compiler(compiler, library)?);
    }
    let programs: Vec<&str> =
        build.workspace.programs().flat_map(|package| package.targets_of("bin")).collect();
    let mut name = dist.file_name().context("the folder has no name")?.to_owned();
    name.push("-with-libc");
    let folder = dist.with_file_name(name);
    lay_out(dist, &programs, loader, &files, &folder)?;
    Ok(folder)
}

/// The name of glibc's loader for an architecture.
fn loader(arch: &str) -> Result<&'static str> {
    match arch {
        "aarch64" => Ok("ld-linux-aarch64.so.1"),
        "x86_64" => Ok("ld-linux-x86-64.so.2"),
        _ => bail!("--with-libc: the loader of {arch} is not known"),
    }
}

/// A file of the C library that a compiler links against.
fn of_compiler(compiler: &str, name: &str) -> Result<PathBuf> {
    let mut command = process::program(compiler);
    let answer = process::output(command.arg(format!("-print-file-name={name}")))?;
    let file = PathBuf::from(answer.trim());
    // A compiler that does not have the file answers with its name.
    if !file.is_absolute() {
        bail!("{compiler} has no {name}");
    }
    file.canonicalize().map(|file| file.with_file_name(name)).with_context(|| format!("cannot find {name}"))
}

fn lay_out(dist: &Path, programs: &[&str], loader: &str, files: &[PathBuf], folder: &Path) -> Result<()> {
    let libraries = folder.join("lib");
    recreate(folder)?;
    fs::create_dir(&libraries)?;
    copy_folder(dist, folder)?;
    for program in programs {
        let script = folder.join(program);
        fs::rename(&script, libraries.join(program))?;
        fs::write(&script, script_for(program, loader))?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    }
    for file in files {
        copy(file, &libraries.join(file.file_name().context("a library has no name")?))?;
    }
    Ok(())
}

/// The name by which the program is called is the script's: beside it lie the plugins and the other scripts.
fn script_for(program: &str, loader: &str) -> String {
    format!(
        "#!/bin/sh\n\
         # Runs the program with the C library that lies beside it.\n\
         here=$(dirname \"$(readlink -f \"$0\")\")\n\
         exec \"$here/lib/{loader}\" --library-path \"$here/lib\" --argv0 \"$here/{program}\" \
         \"$here/lib/{program}\" \"$@\"\n"
    )
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy_folder(&entry.path(), &target)?;
        } else {
            copy(&entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn said_by(command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn programs_use_the_library_beside_them_and_find_their_plugins_and_each_other() {
        let scratch = tempfile::tempdir().unwrap();
        let (dist, folder) = (scratch.path().join("dist"), scratch.path().join("bundle"));
        fs::create_dir_all(dist.join("plugins")).unwrap();
        for program in ["gvmm", "gvmm-plugin"] {
            copy(&gvmm_built::program(program), &dist.join(program)).unwrap();
        }
        copy(&gvmm_built::plugin("counter"), &dist.join("plugins/counter.so")).unwrap();
        let loader = loader(std::env::consts::ARCH).unwrap();
        let names = std::iter::once(&loader).chain(LIBRARIES);
        let files: Vec<_> = names.map(|name| of_compiler("cc", name).unwrap()).collect();
        lay_out(&dist, &["gvmm", "gvmm-plugin"], loader, &files, &folder).unwrap();

        // From elsewhere, by a link.
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(folder.join("gvmm"), &link).unwrap();
        let list = said_by(Command::new(&link).args(["plugin", "list"]).current_dir("/"));
        assert!(list.lines().any(|line| line.starts_with("counter ")), "{list}");
        let inspected = said_by(Command::new(&link).args(["plugin", "inspect", "counter", "--load"]));
        assert!(inspected.contains("counter"), "{inspected}");

        let traced = Command::new(&link).arg("--version").env("LD_DEBUG", "libs").output().unwrap();
        let traced = String::from_utf8_lossy(&traced.stderr).into_owned();
        let lib = folder.canonicalize().unwrap().join("lib");
        for library in ["libc.so.6", "libgcc_s.so.1"] {
            let started = format!("calling init: {}", lib.join(library).display());
            assert!(traced.contains(&started), "{traced}");
        }
    }
}
