//! Measures a vhost-user block back end, any VMM's, without a guest.
//!
//! One queue is driven as Linux drives it: event indexes, an interrupt waited for when there is nothing else to do. Each
//! load prints `@bench NAME LOAD REQUESTS_PER_SECOND`.
#![forbid(unsafe_code)]

mod connection;
mod load;
mod ring;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use crate::connection::Connection;
use crate::load::{ALL, Load};

/// Measures a vhost-user block back end.
#[derive(Parser)]
struct Arguments {
    /// Socket that the back end listens on
    socket: PathBuf,
    /// Name of the back end in what is printed
    #[arg(long, default_value = "back-end")]
    name: String,
    /// Seconds of each load
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Leave out the loads that write
    #[arg(long)]
    reads_only: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let time = Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?;
    let mut connection = Connection::open(&arguments.socket)?;
    let loads = ALL.iter().filter(|load| !(arguments.reads_only && load.writes));
    for load in loads {
        let rate = measure(load, &mut connection, time)?;
        println!("@bench {} {} {rate:.0}", arguments.name, load.name);
    }
    Ok(())
}

fn measure(load: &Load, connection: &mut Connection, time: Duration) -> Result<f64> {
    // What a back end has to warm up, it warms up before.
    load.run(connection, time / 10).with_context(|| load.name)?;
    load.run(connection, time).with_context(|| load.name)
}
