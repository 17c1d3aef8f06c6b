//! `cargo xtask bench`: gvmm and other VMMs on the same work, in turn, in one boot of the test bed.
//!
//! The test bed is emulated and its speed drifts, so the ratios say more than the figures, and counts (exits,
//! faults, memory) more than times.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::bed::{Bed, command_line};
use crate::build::{Build, TARGET};
use crate::process::progress;
use crate::samples::Samples;
use crate::workspace::Workspace;
use crate::{bench_vhost_user, dist, e2e, images, setup};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    other: Option<Other>,
    /// How often each VMM runs
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each of the eight loads on the disk, and 25 megabytes in each of four transfers over the network in each
    /// direction
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// What the guest is to do: disk, net
    #[arg(long, value_delimiter = ',', default_values = ["disk", "net"])]
    loads: Vec<String>,
    /// VMMs to run: gvmm, gvmm_mmio (on virtio-mmio), qemu
    #[arg(long, value_delimiter = ',', default_values = ["gvmm", "gvmm_mmio", "qemu"])]
    vmms: Vec<String>,
}

/// Measurements without the test bed.
#[derive(clap::Subcommand)]
enum Other {
    /// Measure gvmm-device beside QEMU's storage daemon, on this machine and without a guest
    VhostUser(bench_vhost_user::Options),
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if let Some(Other::VhostUser(options)) = &options.other {
        return bench_vhost_user::run(workspace, options);
    }
    let ready = setup::ensure(workspace)?;
    let build = Build { workspace, target: Some(TARGET), cross: &ready.cross };
    let dist = dist::make(&build)?;
    let mut bed = Bed::new(workspace, &ready, "bench")?;
    bed.cpus = 2;
    // One guest: its eight loads on the disk, its network at five megabytes a second, and, generously, its start.
    let run_seconds = options.seconds * (8 + 2 * 20) + 60;
    let runs = options.rounds * u32::try_from(options.vmms.len())?;
    bed.timeout = Duration::from_secs(u64::from(60 + runs * run_seconds));
    bed.add(&dist, "gvmm")?;
    e2e::add_tools(&bed, &build)?;
    bed.add(&images::bed_file(workspace, "bench"), "bench")?;
    progress(format!("{} rounds of {}", options.rounds, options.vmms.join(", ")));

    let (rounds, seconds) = (options.rounds.to_string(), options.seconds.to_string());
    let loads = options.loads.join(" ");
    let words = ["sh", "/bed/bench", &rounds, &seconds, &loads];
    let script = command_line(words.into_iter().chain(options.vmms.iter().map(String::as_str)));
    let mut samples = Samples::default();
    let outcome = bed.run(&script, |line| {
        println!("{line}");
        samples.take(line);
    })?;
    if outcome.status != Some(0) {
        bail!("the measurement failed; its console is in {}", outcome.console.display());
    }
    print!("{}", samples.table(&options.vmms));
    Ok(ExitCode::SUCCESS)
}
