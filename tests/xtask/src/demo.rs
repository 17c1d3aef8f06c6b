//! `cargo xtask demo`: from a checkout to the shell of a guest, in the caller's own terminal.

use std::os::unix::fs::symlink;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::apt::recreate;
use crate::bed::{Bed, command_line};
use crate::build::{Build, Cross, TARGET};
use crate::process::{display, progress};
use crate::workspace::Workspace;
use crate::{dist, images, setup};

/// Hypervisors of Linux on arm64 that gvmm can use.
const HYPERVISORS: [&str; 2] = ["/dev/gunyah", "/dev/kvm"];

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
    let status = if !options.emulate && has_own_hypervisor() {
        natively(workspace, options)?
    } else {
        in_the_bed(workspace, options)?
    };
    progress(format!("gvmm ended with exit code {status}"));
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}

fn has_own_hypervisor() -> bool {
    let usable = |device: &str| std::fs::File::options().read(true).write(true).open(device).is_ok();
    cfg!(target_arch = "aarch64") && HYPERVISORS.into_iter().any(usable)
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

fn natively(workspace: &Workspace, options: &Options) -> Result<i32> {
    let guest = setup::ensure_native(workspace)?;
    let dist = dist::make(&Build { workspace, target: None, cross: &Cross::default() })?;
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
