//! The program: from the command line to an exit code.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use vmm_sys_util::eventfd::EventFd;

use crate::cli::{AccelChoice, Cli, Command, OnReset, RunArguments};
use crate::console::ConsoleHub;
use crate::exit_code::Code;
use crate::hypervisor::gunyah::Gunyah;
use crate::hypervisor::kvm::Kvm;
use crate::hypervisor::{Accelerator, Error};
use crate::machine::devices::{self, Devices};
use crate::machine::transport::Transport;
use crate::machine::{self, Machine, Outcome, Protection, layout, life};
use crate::plugin::provider::Provider;
use crate::plugin::tools;
use crate::stats::{Stats, StatsFile};
use crate::thread;
use crate::{doctor, eventfd, loader, logging};

/// Runs gvmm with the process's own arguments.
pub fn main() -> Code {
    let begun = Instant::now();
    let cli = Cli::parse();
    let level = match logging::start(&cli.run.log) {
        Ok(level) => level,
        Err(error) => return complain(Code::Usage, &error),
    };
    match cli.command {
        Some(Command::Doctor { json }) => return doctor::run(json),
        Some(Command::Plugin { arguments }) => {
            return complain(Code::Usage, &tools::become_tools(&arguments));
        }
        None => {}
    }
    if let Some(device) = cli.run.devices.iter().find(|device| device.help) {
        return match Provider::find(device) {
            Ok(provider) => {
                print!("{}", provider.manifest.help());
                if Transport::applies_to(&provider.manifest.kind) {
                    print!("{}", Transport::HELP);
                }
                Code::PowerOff
            }
            Err(error) => complain(Code::Usage, &error),
        };
    }
    match run(&cli.run, begun, level) {
        Ok(Outcome { code, message: None }) => code,
        Ok(Outcome { code, message: Some(message) }) => complain(code, &message),
        Err(error) => complain(Code::Usage, &error),
    }
}

/// Says what went wrong.
fn complain(code: Code, message: &str) -> Code {
    eprintln!("gvmm: {message}");
    code
}

/// Sets the machine up and runs it; an error means that nothing was started.
fn run(arguments: &RunArguments, begun: Instant, level: u8) -> Result<Outcome, String> {
    let kernel = arguments.kernel.clone().ok_or("--kernel is missing: give a Linux arm64 Image")?;
    let protection = protection(arguments)?;
    check_vcpus(arguments.cpus)?;
    loader::check(&kernel, arguments.initrd.as_deref()).map_err(|error| error.to_string())?;
    let stats_file = arguments.stats.as_deref().map(StatsFile::open).transpose()?;
    let wanted = devices::wanted(&arguments.devices, !arguments.no_defaults, Transport::usual(protection))?;
    let accelerator = accelerator(arguments.accel, arguments.dump_dtb.is_some())?;
    let stop = Arc::new(eventfd::new().map_err(|e| format!("cannot make an eventfd: {e}"))?);
    stop_on_signals(&stop)?;
    let leave = stop.clone();
    let consoles = Arc::new(ConsoleHub::new(move || eventfd::signal(&leave)));
    let devices = Arc::new(Devices::plug(&wanted, protection, &consoles, level)?);
    let machine = Machine {
        name: arguments.name.clone(),
        kernel,
        initrd: arguments.initrd.clone(),
        cmdline: arguments.cmdline.clone(),
        memory: arguments.memory,
        vcpus: arguments.cpus,
        protection,
        restart_on_reset: arguments.on_reset == OnReset::Restart,
        accelerator,
        devices,
    };
    if let Some(file) = &arguments.dump_dtb {
        return dump(&machine, file);
    }
    let mut stats = Stats::default();
    let outcome = machine::run(&machine, &stop, begun, &mut stats);
    drop(machine);
    consoles.close();
    if let Some(file) = stats_file {
        file.write(&stats)?;
    }
    Ok(outcome)
}

fn protection(arguments: &RunArguments) -> Result<Protection, String> {
    if !arguments.protected {
        return Ok(Protection::Shared);
    }
    Ok(Protection::Lent { window: arguments.swiotlb, firmware: arguments.protected_firmware })
}

fn check_vcpus(vcpus: u32) -> Result<(), String> {
    match vcpus {
        0 => Err("--cpus 0: a machine needs at least one vCPU".to_owned()),
        n if n > layout::MAX_VCPUS => {
            Err(format!("--cpus {n}: at most {} vCPUs are possible", layout::MAX_VCPUS))
        }
        _ => Ok(()),
    }
}

fn dump(machine: &Machine, file: &PathBuf) -> Result<Outcome, String> {
    let tree = life::device_tree(machine).map_err(|e| e.to_string())?;
    std::fs::write(file, tree).map_err(|e| format!("device tree file {}: {e}", file.display()))?;
    Ok(Outcome { code: Code::PowerOff, message: None })
}

/// The accelerator asked for, if it works here. A device tree can be written without one that works.
fn accelerator(choice: AccelChoice, dump_only: bool) -> Result<Box<dyn Accelerator>, String> {
    let candidates: Vec<Box<dyn Accelerator>> = match choice {
        AccelChoice::Gunyah => vec![Box::new(Gunyah::default())],
        AccelChoice::Kvm => vec![Box::new(Kvm)],
        AccelChoice::Auto => vec![Box::new(Gunyah::default()), Box::new(Kvm)],
    };
    let mut refusals = Vec::new();
    for candidate in candidates {
        match candidate.probe() {
            Ok(()) => return Ok(candidate),
            Err(_) if dump_only && choice != AccelChoice::Auto => return Ok(candidate),
            Err(error) => refusals.push((candidate.name(), error)),
        }
    }
    let tried = |(name, error): (&str, Error)| format!("\n  {name}: {error}");
    let tried: String = refusals.into_iter().map(tried).collect();
    Err(format!(
        "no accelerator can run a VM on this machine:{tried}\n`gvmm doctor` says more; `cargo xtask demo` in gvmm's \
         sources boots a guest on any machine"
    ))
}

/// Has the signals that ask a program to end signal `stop`.
fn stop_on_signals(stop: &Arc<EventFd>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot handle signals: {error}");
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT]).map_err(failed)?;
    let stop = stop.clone();
    let body = move || {
        for signal in signals.forever() {
            tracing::info!("signal {signal}: the VM is stopped");
            eventfd::signal(&stop);
        }
    };
    thread::spawn("signals", body).map_err(failed)?;
    Ok(())
}
