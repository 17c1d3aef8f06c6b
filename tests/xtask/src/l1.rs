//! `cargo xtask l1 -- SCRIPT [ARGUMENT]...`: one script in the test bed, with gvmm built from this tree.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bed::{Bed, command_line};
use crate::build::{Build, TARGET};
use crate::workspace::Workspace;
use crate::{dist, e2e, process, setup};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Virtual CPUs of the test bed: 1 is quickest for boots, 2 runs workers and vCPUs in parallel
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Memory of the test bed in MiB
    #[arg(long, default_value_t = 3072)]
    memory: u32,
    /// Seconds after which the test bed is stopped
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// File or folder to put at /bed/NAME, as NAME=PATH
    #[arg(long, value_name = "NAME=PATH")]
    file: Vec<String>,
    /// Package below tests/ whose shared library to put at /bed/lib
    #[arg(long, value_name = "PACKAGE")]
    library: Vec<String>,
    /// Folder to lay at /gvmm instead of building one
    #[arg(long, value_name = "FOLDER")]
    dist: Option<PathBuf>,
    /// Shell script to run in the test bed, and its arguments; `-` is an interactive shell
    #[arg(required = true, trailing_var_arg = true, value_name = "SCRIPT")]
    script: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let ready = setup::ensure(workspace)?;
    let build = Build { workspace, target: Some(TARGET), cross: &ready.cross };
    let folder = match &options.dist {
        Some(folder) => folder.clone(),
        None => dist::make(&build)?,
    };
    let mut bed = Bed::new(workspace, &ready, &format!("l1-{}", std::process::id()))?;
    bed.cpus = options.cpus;
    bed.memory_mib = options.memory;
    bed.timeout = Duration::from_secs(options.timeout);
    bed.add(&folder, "gvmm")?;
    e2e::add_tools(&bed, &build)?;
    e2e::add_libraries(&bed, &build, &options.library)?;
    for file in &options.file {
        let (name, path) =
            file.split_once('=').with_context(|| format!("--file {file}: expected NAME=PATH"))?;
        bed.add(path.as_ref(), name)?;
    }
    process::progress("booting the test bed");
    let script = &options.script[0];
    let outcome = if script == "-" {
        eprintln!("    (exit leaves the shell and the test bed; Ctrl-] x kills QEMU)");
        bed.interact("setsid cttyhack sh -l")?
    } else {
        bed.add(script.as_ref(), "script")?;
        let words = ["sh", "/bed/script"].into_iter().chain(options.script[1..].iter().map(String::as_str));
        bed.run(&command_line(words), |line| println!("{line}"))?
    };
    let results = outcome.results.display();
    match outcome.status {
        Some(0) => {
            eprintln!("==> done; /results is in {results}");
            Ok(ExitCode::SUCCESS)
        }
        Some(status) => {
            eprintln!("==> the script ended with status {status}; /results is in {results}");
            Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
        }
        None => {
            bail!("the test bed ended before the script; its console is in {}", outcome.console.display())
        }
    }
}
