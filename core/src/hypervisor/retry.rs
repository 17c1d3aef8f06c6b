//! Starting a VM that the hypervisor refuses for the moment.
//!
//! After a VM has ended, Gunyah frees its objects with a delay of its own, and a valid VM that is started meanwhile may
//! be refused as if it were wrong. A short wait cures that. The wait is bounded, because a VM that is wrong in a way
//! that the checks before the start do not know looks the same.

use std::time::Duration;

use super::Error;

/// Waits between the tries: three of them follow the first.
pub const WAITS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// Errors that can carry a refusal that may pass.
pub trait MaybeTransient: std::fmt::Display {
    /// Whether another try may succeed.
    fn is_transient(&self) -> bool;
}

impl MaybeTransient for Error {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Transient(_))
    }
}

/// Calls `attempt`, which loads guest memory and starts a VM on it, until it succeeds, fails for good or has been
/// refused for the moment once more than there are [`WAITS`].
///
/// `wait` sleeps for the given time and returns whether to go on; it returns false to give up, on a request to stop.
///
/// # Errors
///
/// The last error of `attempt`.
pub fn start_with_retries<T, E: MaybeTransient>(
    mut wait: impl FnMut(Duration) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    for (tries, pause) in (1..).zip(WAITS) {
        match attempt() {
            Err(error) if error.is_transient() => {
                let first_line = error.to_string();
                let first_line = first_line.lines().next().unwrap_or_default();
                tracing::warn!(
                    "start refused, which may pass: {first_line}; try {} of {} in {} s",
                    tries + 1,
                    WAITS.len() + 1,
                    pause.as_secs()
                );
                if !wait(pause) {
                    return Err(error);
                }
            }
            done => return done,
        }
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refuses so many times for the moment, then answers.
    fn run(refusals: usize, answer: Result<u32, Error>) -> (Result<u32, Error>, Vec<Duration>, usize) {
        let (mut waits, mut attempts) = (Vec::new(), 0);
        let mut answer = Some(answer);
        let result = start_with_retries(
            |pause| {
                waits.push(pause);
                true
            },
            || {
                attempts += 1;
                if attempts <= refusals {
                    return Err(Error::Transient("refused".to_owned()));
                }
                answer.take().unwrap()
            },
        );
        (result, waits, attempts)
    }

    #[test]
    fn starts_at_once_where_nothing_is_refused() {
        let (result, waits, _) = run(0, Ok(7));
        assert_eq!(result.unwrap(), 7);
        assert!(waits.is_empty());
    }

    #[test]
    fn gets_over_refusals_that_pass() {
        let (result, waits, attempts) = run(2, Ok(7));
        assert_eq!(result.unwrap(), 7);
        assert_eq!((waits.as_slice(), attempts), (&WAITS[..2], 3));
    }

    #[test]
    fn gives_up_after_the_last_wait() {
        let (result, waits, attempts) = run(usize::MAX, Ok(7));
        assert!(result.unwrap_err().is_transient());
        assert_eq!((waits.as_slice(), attempts), (&WAITS[..], 4));
    }

    #[test]
    fn does_not_repeat_what_is_wrong() {
        let (result, waits, attempts) = run(0, Err(Error::Plan("17 vCPUs".to_owned())));
        assert_eq!(result.unwrap_err().to_string(), "17 vCPUs");
        assert_eq!((waits.len(), attempts), (0, 1));
    }

    #[test]
    fn ends_the_wait_when_asked_to_stop() {
        let mut attempts = 0;
        let result = start_with_retries(
            |_| false,
            || {
                attempts += 1;
                Err::<(), _>(Error::Transient("refused".to_owned()))
            },
        );
        assert!(result.is_err());
        assert_eq!(attempts, 1);
    }
}
