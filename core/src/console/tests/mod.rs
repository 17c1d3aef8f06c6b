//! Tests of the console on terminals of their own.
//!
//! A terminal belongs to a process, so each test starts this test program again as a child on a fresh
//! pseudo-terminal; the child runs one of the roles in [`role`], the test types and looks.

mod clients;
mod files;
mod role;
mod stdio;
mod tty;
