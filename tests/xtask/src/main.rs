//! Set-up, tests, demo, packaging and measurements of gvmm, run as `cargo xtask COMMAND`.
//!
//! `tests/README.md` describes the test bed that most commands use.
#![forbid(unsafe_code)]

mod apt;
mod back_end;
mod bed;
mod bench;
mod bench_vhost_user;
mod build;
mod cpio;
mod debian_rust;
mod demo;
mod dist;
mod e2e;
mod full_kernel;
mod guest_packages;
mod hypervisor;
mod images;
mod kernel;
mod l1;
mod libc_bundle;
mod process;
mod samples;
mod served;
mod setup;
mod summary;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Set-up, tests, demo, packaging and measurements of gvmm.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need; the other commands do this themselves
    Setup,
    /// Boot a Debian guest under gvmm and stay in its shell
    Demo(demo::Options),
    /// Run every test: unit tests, documentation tests, guests in the test bed
    Test(test::Options),
    /// Measure gvmm beside other VMMs in the test bed, or its back end beside QEMU's
    Bench(bench::Options),
    /// Lay out gvmm and its plugins in one folder that runs from anywhere
    Dist(dist::Options),
    /// Run a script in the test bed, with gvmm built from this tree
    L1(l1::Options),
}

fn main() -> ExitCode {
    run(Arguments::parse().command).unwrap_or_else(|error| {
        eprintln!("cargo xtask: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::find()?;
    match command {
        Command::Setup => setup::run(&workspace),
        Command::Demo(options) => demo::run(&workspace, &options),
        Command::Test(options) => test::run(&workspace, &options),
        Command::Bench(options) => bench::run(&workspace, &options),
        Command::Dist(options) => dist::run(&workspace, &options),
        Command::L1(options) => l1::run(&workspace, &options),
    }
}
