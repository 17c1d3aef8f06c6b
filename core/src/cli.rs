//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use gvmm_plugin_api::options::parse_size;

use crate::plugin::argument::DeviceArgument;

/// What stands below the options in the help text; clap wraps the paragraphs.
const AFTER_HELP: &str = "\
Exit codes: 0 the guest powered off or gvmm was asked to stop; 1 the hypervisor did not start the VM; 2 bad usage, \
nothing was started; 3 the guest reset (--on-reset exit); 4 the guest crashed; 5 the guest powered off, but a device \
had failed on the way.

Example: gvmm --kernel Image --memory 256M --cpus 8 --cmdline \"rw root=/dev/vda\" --device virtio_blk,disk=disk.img";

/// Runs virtual machines under Gunyah and KVM on aarch64; every device is a plugin.
#[derive(Debug, Parser)]
#[command(name = "gvmm", version, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
#[command(after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do instead of running a VM.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The VM to run.
    #[command(flatten)]
    pub run: RunArguments,
}

/// What to do instead of running a VM.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Says what this machine can run, and why not. Changes nothing and starts no VM.
    Doctor {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists, inspects, checks and begins plugins.
    #[command(disable_help_flag = true)]
    Plugin {
        /// `gvmm plugin help` lists the commands.
        #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// The VM to run.
#[derive(Debug, clap::Args)]
pub struct RunArguments {
    /// Linux kernel: an arm64 Image, plain, gzip-compressed or as EFI zboot.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub cmdline: String,
    /// Guest memory in bytes; K, M, G may follow. A multiple of 2M.
    #[arg(long, short = 'm', value_name = "SIZE", default_value = "256M", value_parser = size)]
    pub memory: u64,
    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// What runs the vCPUs; auto takes gunyah where it is, else kvm.
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    pub accel: AccelChoice,
    /// Name of the VM.
    #[arg(long, default_value = "gvmm")]
    pub name: String,
    /// A device: a plugin's path or name and its options. `PLUGIN,help` lists the options.
    #[arg(long = "device", value_name = "PLUGIN[,KEY=VALUE...]", value_parser = DeviceArgument::parse)]
    pub devices: Vec<DeviceArgument>,
    /// Leaves out the devices of the default profile (a console and a clock).
    #[arg(long)]
    pub no_defaults: bool,
    /// What to do when the guest resets.
    #[arg(long, value_enum, default_value_t = OnReset::Exit)]
    pub on_reset: OnReset,
    /// Lends the guest's memory to it, out of the host's reach but for a window for its devices.
    #[arg(long)]
    pub protected: bool,
    /// Size of that window, a multiple of 2M.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size)]
    pub swiotlb: u64,
    /// Starts a protected guest in the hypervisor's own protected-VM firmware.
    #[arg(long, requires = "protected")]
    pub protected_firmware: bool,
    /// Writes the device tree to a file and stops.
    #[arg(long, value_name = "FILE")]
    pub dump_dtb: Option<PathBuf>,
    /// Writes statistics as JSON to a file at the end.
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or TARGET=LEVEL,...
    #[arg(long, value_name = "FILTER", env = "GVMM_LOG", default_value = "warn", global = true)]
    pub log: String,
}

/// `--accel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccelChoice {
    /// The Gunyah hypervisor.
    Gunyah,
    /// KVM on arm64.
    Kvm,
    /// Gunyah where it is, else KVM.
    Auto,
}

/// `--on-reset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnReset {
    /// Build the VM anew; disks, sockets and the terminal stay.
    Restart,
    /// End with exit code 3.
    Exit,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "not a size in bytes: write a number, K, M or G may follow".to_owned())
}
