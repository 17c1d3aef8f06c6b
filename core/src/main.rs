//! The `gvmm` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    gvmm::app::main().into()
}
