//! `gvmm-device`: the device of a plugin as a program of its own, after the "Backend program conventions" of vhost-user.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use gvmm_plugin_api::host::argument::DeviceArgument;
use gvmm_plugin_api::host::{Instance, Library, Manifest, search};
use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::virtio::VirtioDevice;
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::host::{BackendHost, Surroundings};
use super::server::{End, Listener, serve};
use super::standalone::StandAlone;
use super::supervised::Supervised;
use crate::device_types;
use crate::isolation::reports::{Packets, Ready, Report};
use crate::isolation::sandbox::{self, Entered};
use crate::protocol::Channel;

/// Exit codes of the program.
mod code {
    /// The front end went, or the program was asked to end.
    pub(super) const DONE: u8 = 0;
    /// The device did not start, or its front end broke the rules.
    pub(super) const FAILED: u8 = 1;
    /// The command line makes no sense.
    pub(super) const USAGE: u8 = 2;
}

/// Serves the virtio device of a plugin to a VMM over vhost-user.
#[derive(Debug, Parser)]
#[command(
    name = "gvmm-device",
    version,
    after_help = "Exit codes: 0 the front end went or a signal came, 1 the device could not be served, 2 bad usage."
)]
struct Arguments {
    /// Path or name of a plugin with its options; PLUGIN,help lists them
    #[arg(value_name = "PLUGIN[,OPTION=VALUE...]", value_parser = DeviceArgument::parse)]
    device: DeviceArgument,

    /// Listen on a Unix socket at this path
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    socket_path: Option<PathBuf>,

    /// Use the connected or listening Unix socket that the program was started with
    #[arg(long, value_name = "NUMBER")]
    fd: Option<RawFd>,

    /// Print what the back end is as JSON, and end
    #[arg(long)]
    print_capabilities: bool,

    /// Wait for another front end when one has gone
    #[arg(long)]
    keep_listening: bool,

    /// Give up all that the plugin does not declare before its code runs; `required` serves no device in less
    #[arg(long, value_enum, default_value_t = Sandboxed::Off)]
    sandbox: Sandboxed,

    /// Socket to the gvmm that has started the program
    #[arg(long, value_name = "NUMBER", hide = true, requires = "fd")]
    reports: Option<RawFd>,

    /// Level of the log on standard error, or TARGET=LEVEL,...
    #[arg(long, default_value = "warn", value_name = "FILTER")]
    log: String,
}

/// `--sandbox`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Sandboxed {
    /// As trusted as whoever started it.
    Off,
    /// As far as this host allows.
    On,
    /// Whole, or not at all.
    Required,
}

/// A plugin that was asked for, read and checked; none of its code has run.
struct Wanted {
    id: String,
    file: PathBuf,
    manifest: Manifest,
    values: Values,
}

/// Why the program ends before its time: an exit code and what to say.
type Failure = (u8, String);

/// Runs the program with the process's own arguments.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = start_log(&arguments.log).and_then(|level| run_reporting(&arguments, level));
    ExitCode::from(match ended {
        Ok(()) => code::DONE,
        Err((code, message)) => {
            eprintln!("gvmm-device: {message}");
            code
        }
    })
}

fn usage(message: impl ToString) -> Failure {
    (code::USAGE, message.to_string())
}

fn failed(message: impl ToString) -> Failure {
    (code::FAILED, message.to_string())
}

/// Starts the log; the most detailed level that a plugin needs to produce.
fn start_log(filter: &str) -> Result<u8, Failure> {
    let parsed: Targets = filter.parse().map_err(|e| usage(format!("--log {filter}: {e}")))?;
    let levels = parsed.iter().map(|(_, level)| level).chain(parsed.default_level());
    let level = match levels.max() {
        None | Some(LevelFilter::OFF) => 0,
        Some(LevelFilter::ERROR) => 1,
        Some(LevelFilter::WARN) => 2,
        Some(LevelFilter::INFO) => 3,
        Some(LevelFilter::DEBUG) => 4,
        Some(LevelFilter::TRACE) => 5,
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .compact();
    let log = tracing_subscriber::registry().with(parsed).with(lines);
    log.try_init().map_err(|e| failed(format!("the log cannot be started: {e}")))?;
    Ok(level)
}

/// Runs below a gvmm if one has started the program.
fn run_reporting(arguments: &Arguments, level: u8) -> Result<(), Failure> {
    let (Some(reports), Some(fd)) = (arguments.reports, arguments.fd) else {
        return run(arguments, level, None);
    };
    let mut keep = vec![reports, fd];
    // Options that are descriptors, whichever those are.
    keep.extend(arguments.device.options.iter().filter_map(|(_, value)| value.parse::<RawFd>().ok()));
    sandbox::close_others(&keep);
    let above = Supervised::new(Packets::from(inherited(reports, "--reports")?));
    let ended = run(arguments, level, Some(&above));
    if let Err((_, message)) = &ended {
        above.report(&Report::Refused(message.clone()));
    }
    ended
}

fn run(arguments: &Arguments, level: u8, above: Option<&Supervised>) -> Result<(), Failure> {
    let file = search::find(&arguments.device.plugin).map_err(usage)?;
    let manifest = Manifest::read(&file).map_err(usage)?;
    if arguments.device.help {
        print!("{}", manifest.help());
        return Ok(());
    }
    let number = manifest.virtio_type.ok_or_else(|| {
        usage(format!(
            "plugin {}: it makes a device of kind {}, and vhost-user is for virtio: give it to gvmm",
            manifest.name, manifest.kind
        ))
    })?;
    if arguments.print_capabilities {
        println!("{}", capabilities(number));
        return Ok(());
    }
    let source = Source::of(arguments)?;
    let values = manifest.check(arguments.device.pairs()).map_err(usage)?;
    let id = arguments.device.id.clone().unwrap_or_else(|| manifest.name.clone());
    let stop = stop_on_signals().map_err(|e| failed(format!("cannot handle signals: {e}")))?;
    let wanted = Wanted { id, file, manifest, values };
    let surroundings: Box<dyn Surroundings> = match above {
        Some(above) => Box::new(above.clone()),
        None => Box::new(StandAlone::new(&wanted.id)),
    };
    let accepts = matches!(source, Source::Listener(_));
    let (device, host, missing) = make(&wanted, surroundings, level, arguments.sandbox, accepts)?;
    match above {
        Some(above) => above.report(&ready(&*device, missing)),
        None if missing.is_empty() => {}
        None => tracing::warn!("the sandbox is not whole, this host refused: {}", missing.join(", ")),
    }
    serve_all(&device, &host, source, &stop, arguments.keep_listening)
}

/// The answer to `--print-capabilities` (`VHostUserBackendCapabilities` of `vhost-user.json`).
fn capabilities(virtio_type: u32) -> serde_json::Value {
    let described = device_types::of_number(virtio_type).and_then(|known| known.described_as);
    let name = described.map_or_else(|| format!("virtio-{virtio_type}"), str::to_owned);
    serde_json::json!({ "type": name, "features": [] })
}

/// What vhost-user does not tell of a device, for the gvmm above.
fn ready(device: &dyn VirtioDevice, missing: Vec<String>) -> Report {
    let traits = device.traits();
    Report::Ready(Ready { queue_sizes: traits.queue_sizes, config_size: traits.config_size, missing })
}

/// A device with its host, and what its sandbox lacks.
type Made = (Arc<dyn VirtioDevice>, Arc<BackendHost>, Vec<String>);

/// Loads the plugin and makes its device, in a sandbox if one is wanted.
fn make(
    wanted: &Wanted,
    surroundings: Box<dyn Surroundings>,
    level: u8,
    sandboxed: Sandboxed,
    accepts: bool,
) -> Result<Made, Failure> {
    let entered = match sandboxed {
        Sandboxed::Off => None,
        Sandboxed::On | Sandboxed::Required => {
            let entered = sandbox::enter(&wanted.file, &wanted.manifest, &wanted.values, accepts);
            Some(entered.map_err(failed)?)
        }
    };
    let missing = entered.as_ref().map_or(&[][..], |entered| &entered.missing);
    if sandboxed == Sandboxed::Required && !missing.is_empty() {
        return Err(failed(format!(
            "a whole sandbox is required, and this host refused: {}",
            missing.join(", ")
        )));
    }
    let library = Library::load(&wanted.file, level).map_err(failed)?;
    let missing = entered.map_or_else(Vec::new, Entered::finish);
    let host = Arc::new(BackendHost::new(surroundings));
    match library.create(&wanted.values, host.clone()).map_err(failed)? {
        Instance::Virtio(device) => Ok((device, host, missing)),
        Instance::Mmio(_) | Instance::Pci(_) => {
            Err(failed(format!("plugin {}: it made no virtio device", wanted.manifest.name)))
        }
    }
}

/// Where front ends come from.
enum Source {
    Listener(Listener),
    Connected(Channel),
}

impl Source {
    fn of(arguments: &Arguments) -> Result<Self, Failure> {
        match (&arguments.socket_path, arguments.fd) {
            (Some(path), None) => Listener::bind(path).map(Self::Listener).map_err(failed),
            (None, Some(fd)) => Self::inherited(fd),
            _ => Err(usage("no socket: give --socket-path PATH or --fd NUMBER")),
        }
    }

    /// A socket that the process was started with.
    fn inherited(fd: RawFd) -> Result<Self, Failure> {
        let refused = |why: &dyn std::fmt::Display| usage(format!("--fd {fd}: {why}"));
        let socket = inherited(fd, "--fd")?;
        let listening = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::AcceptConn);
        if listening.map_err(|errno| refused(&errno))? {
            let listener = Listener::inherited(socket).map_err(|e| refused(&e))?;
            return Ok(Self::Listener(listener));
        }
        Ok(Self::Connected(Channel::from(socket)))
    }
}

/// A Unix socket that the process was started with.
fn inherited(fd: RawFd, option: &str) -> Result<OwnedFd, Failure> {
    let refused = |why: &dyn std::fmt::Display| usage(format!("{option} {fd}: {why}"));
    if fd <= 2 {
        return Err(refused(&"0, 1 and 2 are standard input, output and error"));
    }
    let address = getsockname::<SockaddrStorage>(fd).map_err(|errno| refused(&errno))?;
    if address.family() != Some(AddressFamily::Unix) {
        return Err(refused(&"it is no Unix socket"));
    }
    // SAFETY: it is open, as getsockname has shown, and the command line gives it to us; nothing else in this process
    // knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A socket that has input once a signal has asked the program to end. A second one ends it at once.
fn stop_on_signals() -> io::Result<UnixStream> {
    let (stop, write) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        let again = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, again.clone())?;
        signal_hook::flag::register(signal, again)?;
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(stop)
}

fn serve_all(
    device: &Arc<dyn VirtioDevice>,
    host: &Arc<BackendHost>,
    source: Source,
    stop: &UnixStream,
    keep_listening: bool,
) -> Result<(), Failure> {
    let one = |channel: &Channel| serve(device, host, channel, stop.as_fd());
    let listener = match source {
        Source::Connected(channel) => return ended(one(&channel)),
        Source::Listener(listener) => listener,
    };
    loop {
        let accepted = listener.accept(stop.as_fd());
        let Some(channel) = accepted.map_err(|e| failed(format!("cannot accept front ends: {e}")))? else {
            return Ok(());
        };
        tracing::info!("a front end has connected");
        let end = one(&channel);
        if !keep_listening || matches!(end, End::Stopped) {
            return ended(end);
        }
        match end {
            End::Fault(why) => tracing::warn!("the front end was sent away: {why}"),
            End::Gone | End::Stopped => tracing::info!("the front end has gone"),
        }
    }
}

fn ended(end: End) -> Result<(), Failure> {
    match end {
        End::Gone | End::Stopped => Ok(()),
        End::Fault(why) => Err(failed(format!("the front end was sent away: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(["gvmm-device"].into_iter().chain(line.split_whitespace()))
    }

    fn refusal(line: &str) -> String {
        match Source::of(&arguments(line).unwrap()) {
            Err((code::USAGE, message)) => message,
            Err((code, message)) => panic!("{code}: {message}"),
            Ok(_) => panic!("'{line}' was accepted"),
        }
    }

    #[test]
    fn a_socket_is_needed_and_one_is_enough() {
        assert_eq!(refusal("p.so"), "no socket: give --socket-path PATH or --fd NUMBER");
        assert!(arguments("p.so --socket-path a --fd 3").is_err());
        assert!(arguments("--socket-path a").is_err());
    }

    #[test]
    fn a_descriptor_that_is_no_socket_is_refused() {
        use std::os::fd::AsRawFd;
        assert_eq!(refusal("p.so --fd 1"), "--fd 1: 0, 1 and 2 are standard input, output and error");
        let file = tempfile::tempfile().unwrap();
        assert_eq!(
            refusal(&format!("p.so --fd {}", file.as_raw_fd())),
            format!("--fd {}: ENOTSOCK: Socket operation on non-socket", file.as_raw_fd())
        );
    }

    #[test]
    fn capabilities_name_the_type_as_management_programs_know_it() {
        assert_eq!(capabilities(2), serde_json::json!({"type": "block", "features": []}));
        assert_eq!(capabilities(63)["type"], "virtio-63");
    }
}
