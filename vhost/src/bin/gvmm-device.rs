//! The device of a plugin as a program of its own; see `gvmm_vhost::backend::program`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    gvmm_vhost::backend::program::main()
}
