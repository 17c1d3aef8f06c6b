//! Programs that the end-to-end tests run in guests.
fn main() {}
