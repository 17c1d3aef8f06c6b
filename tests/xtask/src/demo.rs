//! `cargo xtask demo`: from a checkout to the shell of a guest, in the caller's own terminal.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::apt::recreate;
use crate::bed::{Bed, command_line};
use crate::build::{Build, Cross, TARGET};
use crate::hypervisor::{self, Access};
use crate::process::{display, progress};
use crate::workspace::Workspace;
use crate::{dist, images, setup};

/// gvmm's exit code for a guest that the hypervisor did not start.
const NOT_STARTED: i32 = 1;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Use the test bed even where this machine's own hypervisor could run the guest
    #[arg(long)]
    emulate: bool,
    /// Virtual CPUs of the guest
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Memory of the guest
    #[arg(long, default_value = "256M")]
    memory: String,
    /// More arguments for gvmm
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let native = if options.emulate { None } else { for_this_machine(workspace)? };
    let status = match &native {
        Some(dist) => natively(workspace, options, dist)?,
        None => in_the_bed(workspace, options)?,
    };
    progress(format!("gvmm ended with exit code {status}"));
    if native.is_some() && status == NOT_STARTED {
        progress(
            "where this machine's hypervisor is the cause, `cargo xtask demo --emulate` does without it",
        );
    }
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}

/// Builds gvmm for a hypervisor of this machine; returns its folder. `None` if guests are to be emulated, and a person
/// who may have expected otherwise has been told why.
fn for_this_machine(workspace: &Workspace) -> Result<Option<PathBuf>> {
    if !cfg!(target_arch = "aarch64") {
        return Ok(None);
    }
    let obstacle = match hypervisor::access(&hypervisor::DEVICES) {
        Access::Missing => return Ok(None),
        Access::Refused(why) => why,
        Access::Granted => {
            let dist = dist::make(&Build { workspace, target: None, cross: &Cross::default() })?;
            match hypervisor::obstacle(&dist.join("gvmm"))? {
                None => return Ok(Some(dist)),
                Some(why) => why,
            }
        }
    };
    progress(format!("emulating, since no hypervisor of this machine can be used: {obstacle}"));
    Ok(None)
}

fn in_the_bed(workspace: &Workspace, options: &Options) -> Result<i32> {
    let ready = setup::ensure(workspace)?;
    let dist = dist::make(&Build { workspace, target: Some(TARGET), cross: &ready.cross })?;
    let mut bed = Bed::new(workspace, &ready, "demo")?;
    bed.cpus = 2;
    bed.add(&dist, "gvmm")?;
    bed.add(&images::bed_file(workspace, "demo"), "demo")?;
    progress(
        "booting an arm64 Linux with KVM under QEMU (emulated: some 5 s), and the guest inside it (10 s)",
    );
    progress(
        "leave with `poweroff` in the guest or Ctrl-a x (ends gvmm); Ctrl-] x kills QEMU if all else fails",
    );
    let arguments = guest_arguments(options, "Image", "initrd", "svm_disk.img");
    let outcome = bed.interact(&command_line(
        ["sh", "/bed/demo", "gvmm"].into_iter().chain(arguments.iter().map(String::as_str)),
    ))?;
    outcome.status.context("QEMU ended before gvmm did")
}

fn natively(workspace: &Workspace, options: &Options, dist: &Path) -> Result<i32> {
    let guest = setup::ensure_native(workspace)?;
    let folder = workspace.target.join("demo");
    recreate(&folder)?;
    images::initrd(workspace, &guest, &folder.join("initrd"))?;
    images::guest_disk(workspace, &guest, &folder.join("guest-root"), &folder.join("svm_disk.img"))?;
    // The folder is as a user's would be: what the command line names is in it.
    symlink(dist.join("plugins"), folder.join("plugins")).context("cannot link the plugins")?;
    let kernel = guest.kernel.to_str().context("the cache's path is not UTF-8")?;
    let mut gvmm = Command::new(dist.join("gvmm"));
    gvmm.args(guest_arguments(options, kernel, "initrd", "svm_disk.img")).current_dir(&folder);
    progress("leave with `poweroff` in the guest or Ctrl-a x");
    eprintln!("$ cd {} && {}", folder.display(), display(&gvmm));
    let status = gvmm.status().context("cannot start gvmm")?;
    match status.code() {
        Some(code) => Ok(code),
        None => bail!("gvmm was killed ({status})"),
    }
}

/// What a person would type after `gvmm`.
fn guest_arguments(options: &Options, kernel: &str, initrd: &str, disk: &str) -> Vec<String> {
    let mut arguments: Vec<String> = ["--kernel", kernel, "--initrd", initrd].map(str::to_owned).into();
    arguments.extend(["--cmdline", "console=ttyAMA0 quiet root=/dev/vda rw"].map(str::to_owned));
    arguments.extend(["--memory", &options.memory, "--cpus", &options.cpus.to_string()].map(str::to_owned));
    arguments.extend(["--device".to_owned(), format!("plugins/virtio_blk.so,disk={disk}")]);
    arguments.extend(options.arguments.iter().cloned());
    arguments
}
