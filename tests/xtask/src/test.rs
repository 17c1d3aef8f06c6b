//! `cargo xtask test`: every test there is, and one closing line.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::build::{Build, TARGET};
use crate::process::{self, find_program, progress};
use crate::summary::{self, Counts};
use crate::workspace::{Workspace, cargo};
use crate::{dist, e2e, setup};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run one part: unit, doc, e2e, e2e/GROUP or e2e/GROUP/NAME; may be given more than once
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// List the parts and the end-to-end tests instead of running them
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let selected = |part: &str| options.only.is_empty() || options.only.iter().any(|only| only == part);
    let prefixes: Vec<_> =
        options.only.iter().filter_map(|only| only.strip_prefix("e2e/")).map(str::to_owned).collect();
    let groups = if selected("e2e") {
        e2e::find(workspace, &[])?
    } else if prefixes.is_empty() {
        Vec::new()
    } else {
        e2e::find(workspace, &prefixes)?
    };
    if let Some(unknown) = options.only.iter().find(|only| {
        !["unit", "doc", "e2e"].contains(&only.as_str()) && (!only.starts_with("e2e/") || groups.is_empty())
    }) {
        bail!("no part {unknown}: `cargo xtask test --list` shows them");
    }
    if options.list {
        println!("unit: unit and property tests of every package\ndoc: examples in the documentation");
        groups.iter().flat_map(e2e::Group::list).for_each(|line| println!("{line}"));
        return Ok(ExitCode::SUCCESS);
    }

    let mut total = Counts::default();
    if selected("unit") {
        progress("building the tests of every package");
        let mut build = Command::new(cargo());
        process::run(build.args(["build", "--workspace", "--tests"]).current_dir(&workspace.root))?;
        let (tests, sums) = unit_tests();
        total += on_this_machine(workspace, "unit and property tests", tests, sums)?;
    }
    if selected("doc") {
        total +=
            on_this_machine(workspace, "examples in the documentation", doc_tests(), summary::of_cargo_test)?;
    }
    if !groups.is_empty() {
        let ready = setup::ensure(workspace)?;
        let build = Build { workspace, target: Some(TARGET), cross: &ready.cross };
        let dist = dist::make(&build)?;
        total += e2e::run(&groups, &ready, &build, &dist)?;
    }
    println!("{total}");
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The runner of unit tests, and what reads its summary.
fn unit_tests() -> (Command, ReadSummary) {
    let mut command = Command::new(cargo());
    if find_program("cargo-nextest").is_some() {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast", "--color", "never"]);
        command.args(["--status-level", "fail", "--final-status-level", "fail", "--hide-progress-bar"]);
        (command, summary::of_nextest)
    } else {
        command.args(["test", "--workspace", "--tests", "--no-fail-fast", "--quiet"]);
        (command, summary::of_cargo_test)
    }
}

fn doc_tests() -> Command {
    let mut command = Command::new(cargo());
    command.args(["test", "--workspace", "--doc", "--no-fail-fast", "--quiet"]);
    command
}

type ReadSummary = fn(&str) -> Option<Counts>;

/// Runs a test runner, shows what it says, and counts from its summaries.
fn on_this_machine(
    workspace: &Workspace,
    what: &str,
    mut command: Command,
    read_summary: ReadSummary,
) -> Result<Counts> {
    progress(what);
    // One pipe for both streams keeps their order; the shell is there to join them.
    let line = format!("{} 2>&1", process::display(&command));
    command = Command::new("sh");
    command.args(["-c", &line]).current_dir(&workspace.root).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
    let output = child.stdout.take().context("the test runner has no output")?;
    let mut counts = Counts::default();
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some(more) = read_summary(&line) {
            counts += more;
        }
    }
    let status = child.wait()?;
    if !status.success() && counts.failed == 0 {
        bail!("{what}: the test runner itself failed ({status})");
    }
    Ok(counts)
}
