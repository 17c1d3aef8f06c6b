//! `gvmm plugin check`: the conformance tests, each in a process of its own.
//!
//! - [`suite`]: the tests by name. [`subject`]: the plugin under test and the devices it makes.
//! - [`bench`](mod@bench): a host for a device. [`registers_of`]: its registers, whichever kind it is of. [`work`]: requests
//!   that suit any device.
//! - One file a test or a few that belong together; [`report`] writes down how they went.

mod bench;
mod boundary;
mod config;
mod descriptor;
mod handover;
mod hostile;
mod leaks;
mod nodes;
mod options;
mod queues;
mod random;
mod registers;
mod registers_of;
mod report;
mod requests;
mod reset;
mod subject;
mod suite;
mod vhost_user;
mod work;

use std::time::{Duration, Instant};

use gvmm_plugin_api::host::argument::DeviceArgument;
use gvmm_plugin_api::host::{Manifest, search};

use report::{Outcome, Report, Verdict};
use subject::Subject;
use suite::Test;

use crate::{child, code, output};

/// What stands before the verdict in the output of a process that runs one test; the plugin may write there as well.
const VERDICT: &str = "@verdict ";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Path or name of a plugin with the options of its device. The files that these name are written to. A required
    /// option that is left out gets a value by itself; a file, for example, one of 1 MiB. The value `{socket}` is a Unix
    /// socket on which somebody listens
    #[arg(value_name = "PLUGIN[,KEY=VALUE...]", required_unless_present = "list")]
    plugin: Option<String>,
    /// List the tests instead
    #[arg(long)]
    list: bool,
    /// Run the tests whose name contains this text; may be given more than once
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Run the tests in this process, for a debugger
    #[arg(long)]
    in_process: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Seconds that one test may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Where the random numbers begin
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Run one test and say its verdict
    #[arg(long, value_name = "NAME", hide = true)]
    one: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8, String> {
    if arguments.list {
        output::text(&suite::list());
        return Ok(code::GOOD);
    }
    let text = arguments.plugin.as_deref().unwrap_or_default();
    let device = DeviceArgument::parse(text)?;
    if let Some(name) = &arguments.one {
        let verdict = suite::of_name(name).map(|test| in_process(test, &device, arguments.seed))?;
        println!("\n{VERDICT}{}", serde_json::to_string(&verdict).map_err(|e| e.to_string())?);
        return Ok(code::GOOD);
    }
    let file = search::find(&device.plugin)?;
    let begun = Instant::now();
    let mut report = Report::new(&file, Manifest::read(&file).ok());
    for test in suite::selected(&arguments.filter)? {
        let begun = Instant::now();
        let verdict = match report.cannot_be_used() {
            Some(test) => Verdict::Skip(format!("test {test} has failed")),
            None if arguments.in_process => in_process(test, &device, arguments.seed),
            None => apart(test, text, arguments)?,
        };
        let result = Outcome::new(test, verdict, begun.elapsed());
        if !arguments.json {
            output::text(&result.line());
        }
        report.add(result);
    }
    report.end(begun.elapsed());
    match arguments.json {
        true => output::json(&report)?,
        false => output::text(&report.summary()),
    }
    Ok(if report.good() { code::GOOD } else { code::BAD })
}

/// Runs a test here.
fn in_process(test: &Test, device: &DeviceArgument, seed: u64) -> Verdict {
    let body = || {
        let subject = Subject::load(device, seed)?;
        (test.run)(&subject)
    };
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(why)) => Verdict::Fail(why),
        // The test kit panics where an expectation fails.
        Err(panic) => Verdict::Fail(panic_text(&*panic)),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "the test panicked".to_owned())
}

/// Runs a test in another process.
fn apart(test: &Test, text: &str, arguments: &Arguments) -> Result<Verdict, String> {
    let seed = arguments.seed.to_string();
    let line = ["check", text, "--one", test.name, "--seed", &seed];
    let ended = child::run(&line, Duration::from_secs(arguments.timeout))?;
    let verdict = ended.out.lines().rev().find_map(|line| line.strip_prefix(VERDICT));
    if let Some(verdict) =
        verdict.and_then(|json| serde_json::from_str(json).ok()).filter(|_| ended.success())
    {
        return Ok(verdict);
    }
    let hint = if ended.signal().is_some() { test.when_killed } else { "" };
    Ok(Verdict::Fail(format!("{}{hint}", ended.describe())))
}
