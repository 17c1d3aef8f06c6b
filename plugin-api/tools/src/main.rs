//! `gvmm-plugin`, which `gvmm plugin` runs: looks at plugins, checks them, begins new ones.
//!
//! A program of its own, so that no VM carries a test suite in its memory.
#![forbid(unsafe_code)]

mod check;
mod child;
mod inspect;
mod list;
mod new;
mod output;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit codes of the program.
mod code {
    /// Done; what was checked is good.
    pub(crate) const GOOD: u8 = 0;
    /// A plugin failed a test or did not load.
    pub(crate) const BAD: u8 = 1;
    /// The command line or a file that it names makes no sense.
    pub(crate) const USAGE: u8 = 2;
}

/// Looks at plugins, checks them, begins new ones.
#[derive(Debug, Parser)]
#[command(
    name = "gvmm plugin",
    bin_name = "gvmm plugin",
    version,
    after_help = "Exit codes: 0 all is well, 1 a plugin failed a test or did not load, 2 bad usage."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the plugins that gvmm finds by name
    List(list::Arguments),
    /// Shows what a plugin says of itself, without running its code
    Inspect(inspect::Arguments),
    /// Puts a plugin through the conformance tests, each in a process of its own
    Check(check::Arguments),
    /// Begins a plugin: a crate with a device, options, tests and a CI file
    New(new::Arguments),
    /// Loads a plugin and ends
    #[command(hide = true)]
    Load(inspect::LoadArguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::List(arguments) => list::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::New(arguments) => new::run(&arguments),
        Command::Load(arguments) => inspect::load(&arguments),
    };
    ExitCode::from(done.unwrap_or_else(|error| {
        eprintln!("gvmm plugin: {error}");
        code::USAGE
    }))
}
