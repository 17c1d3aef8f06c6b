//! Exercises a guest: verified random I/O on its disks, writes whose durability can be checked after a crash,
//! load for measurements; and types to a console. Built without dependencies on a guest's libraries.

mod disk;
mod flood;
mod frames;
mod garble;
mod journal;
mod kexec;
mod load;
mod mapping;
mod measure;
mod pattern;
mod scribble;
mod socket;
mod terminal;
mod transfer;
mod verify;
mod virtio_pci;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exercises a guest.
#[derive(Parser)]
#[command(name = "guestio")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write patterns by random blocks from several processes, with flush, discard and zeroing mixed in, and
    /// compare all that is read
    Verify(verify::Options),
    /// Append records, telling on standard output which are durable
    Append(journal::AppendOptions),
    /// Check that the first records that `append` wrote are there
    Check(journal::CheckOptions),
    /// Read or write for some seconds and print the rate
    Load(load::Options),
    /// Write random values to the registers of a PCI function
    Scribble(scribble::Options),
    /// Start another kernel in place of this one, without a reset of the machine
    Kexec(kexec::Options),
    /// Put garbage into the queues of a virtio device on PCI
    Garble(garble::Options),
    /// Send malformed frames to a guest's network card
    Flood(flood::Options),
    /// Run a VMM; measure it when its guest prints a text
    Measure(measure::Options),
    /// Run a command on a terminal of its own, and type to it
    Terminal(terminal::Options),
    /// Connect to a Unix socket, and type to it
    Socket(socket::Options),
    /// Answer the transfers of other processes
    Serve(transfer::ServeOptions),
    /// Send to a server and receive from it, comparing all that arrives
    Transfer(transfer::TransferOptions),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Verify(options) => verify::run(&options),
        Command::Append(options) => journal::append(&options),
        Command::Check(options) => journal::check(&options),
        Command::Load(options) => load::run(&options),
        Command::Scribble(options) => scribble::run(&options),
        Command::Kexec(options) => kexec::run(&options),
        Command::Garble(options) => garble::run(&options),
        Command::Flood(options) => flood::run(&options),
        Command::Measure(options) => measure::run(&options),
        Command::Terminal(options) => terminal::run(&options),
        Command::Socket(options) => socket::run(&options),
        Command::Serve(options) => transfer::serve(&options),
        Command::Transfer(options) => transfer::transfer(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guestio: {error:#}");
            ExitCode::FAILURE
        }
    }
}
