//! The device behind a vhost-user back end against the device itself.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use gvmm_plugin_api::host::Instance;
use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::services::{Console, HostServices};
use gvmm_plugin_api::virtio::{QueueState, VirtioDevice};
use gvmm_vhost::backend::host::{BackendHost, Surroundings};
use gvmm_vhost::backend::server::{End, serve};
use gvmm_vhost::device_types;
use gvmm_vhost::frontend::connector::Connector;
use gvmm_vhost::frontend::device::RemoteDevice;
use gvmm_vhost::frontend::options::Settings;
use gvmm_vhost::protocol::Channel;
use gvmm_vhost::protocol::features::NOT_FOR_DRIVER;

use super::bench::Recorder;
use super::config::{not_for_mmio, read_all};
use super::report::Verdict;
use super::requests::gave_up;
use super::subject::Subject;
use super::work::{Loaded, Plug, collect_all, collect_until};

/// How long the back end may take for requests that the device itself completed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What requests led to: bytes written and what they are, by queue and head.
type Answers = BTreeMap<(u16, u16), (u32, Vec<u8>)>;

/// What depends on the order in which threads run may happen to differ, but not each time.
const ATTEMPTS: usize = 3;

pub(super) fn vhost_user(subject: &Subject) -> Result<Verdict, String> {
    let mut last = Err(String::new());
    for _ in 0..ATTEMPTS {
        last = attempt(subject);
        if last.is_ok() {
            break;
        }
    }
    last
}

fn attempt(subject: &Subject) -> Result<Verdict, String> {
    // Run once before anything counts, so that files have the content that the requests give them.
    let mut runs = Vec::new();
    for _ in 0..3 {
        let Some((host, device)) = subject.virtio()? else { return Ok(not_for_mmio()) };
        let remote_features = device.traits().features & !NOT_FOR_DRIVER;
        let plug = Plug::with_features(device, remote_features);
        runs.push((work(subject, &plug, None)?, plug.device().traits(), read_all(plug.device())));
        if let Some(skip) = gave_up(&host) {
            return Ok(skip);
        }
    }
    let [_, (again, _, config_again), (direct, traits, config)] =
        <[_; 3]>::try_from(runs).map_err(|_| "three runs")?;
    let remote = Remote::connect(subject)?;
    let seen = remote.device.traits();
    if seen.device_type != traits.device_type {
        return Err(format!("device type {} instead of {}", seen.device_type, traits.device_type));
    }
    let lost = traits.features & !seen.features & !NOT_FOR_DRIVER;
    if lost != 0 {
        return Err(format!("feature bits {lost:#x} are not offered over vhost-user"));
    }
    let read = read_all(&remote.device);
    // What differs from device to device in any case, such as a hardware address, says nothing.
    if config == config_again && read != config {
        return Err(format!("configuration space is {read:02x?} over vhost-user, in process {config:02x?}"));
    }
    // The protocol does not tell sizes: a front end has to know those of the device.
    let plug = Plug::with_features(remote.device.clone(), traits.features & seen.features);
    let plug = plug.with_sizes(&traits.queue_sizes);
    let answers = work(subject, &plug, Some(&direct))?;
    drop(plug);
    remote.end()?;
    compare(&direct, &again, &answers)?;
    Ok(Verdict::Pass)
}

/// Puts requests through a device, until it is idle or has done what `wanted` names.
fn work(subject: &Subject, plug: &Plug, wanted: Option<&Answers>) -> Result<Answers, String> {
    let mut queues = plug.load(&mut subject.random());
    plug.start_loaded(&queues, &vec![QueueState::default(); queues.len()])?;
    match wanted {
        None => collect_all(&mut queues)?,
        Some(wanted) => {
            let done = |queue: &Loaded, head: &u16| queue.used.iter().any(|(used, _)| used == head);
            collect_until(&mut queues, PATIENCE, |queues| {
                wanted.keys().all(|(index, head)| done(&queues[usize::from(*index)], head))
            })?;
        }
    }
    for queue in &queues {
        plug.device().stop_queue(queue.index);
    }
    let mut answers = Answers::new();
    for queue in &queues {
        for (head, written) in &queue.used {
            let data = plug.answer(&queue.requests[head], *written);
            answers.insert((queue.index, *head), (*written, data));
        }
    }
    plug.device().reset();
    Ok(answers)
}

/// Compares what does not differ from run to run already.
fn compare(direct: &Answers, again: &Answers, remote: &Answers) -> Result<(), String> {
    for (place @ (index, head), (written, data)) in direct {
        let Some((remote_written, remote_data)) = remote.get(place) else {
            return Err(format!("queue {index}: request {head} does not come back over vhost-user"));
        };
        let Some((again_written, again_data)) = again.get(place) else { continue };
        if written == again_written && written != remote_written {
            return Err(format!(
                "queue {index}: {remote_written} bytes are written over vhost-user, {written} in process"
            ));
        }
        if data == again_data && data != remote_data {
            return Err(format!("queue {index}: request {head} reads differently over vhost-user"));
        }
    }
    Ok(())
}

/// A back end in a thread of this process, and the device that its front end sees.
struct Remote {
    device: Arc<dyn VirtioDevice>,
    stop: Event,
    thread: JoinHandle<End>,
}

impl Remote {
    fn connect(subject: &Subject) -> Result<Self, String> {
        let recorder = Arc::new(Recorder::default());
        let host = Arc::new(BackendHost::new(Box::new(AtHome(recorder.clone()))));
        let Instance::Virtio(served) = subject.device_for(host.clone())? else {
            return Err("the plugin made another kind of device this time".to_owned());
        };
        let traits = served.traits();
        let (ours, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
        let stop = Event::new().map_err(|e| e.to_string())?;
        let stopped = stop.try_clone().map_err(|e| e.to_string())?;
        let thread = std::thread::spawn(move || {
            let channel = Channel::from(theirs);
            serve(&served, &host, &channel, stopped.as_fd())
        });
        let settings = Settings {
            device_type: traits.device_type,
            known: device_types::of_number(traits.device_type),
            queues: u16::try_from(traits.queue_sizes.len()).ok(),
            queue_size: traits.queue_sizes.iter().copied().max().unwrap_or(1),
            config_size: Some(traits.config_size),
            tag: None,
            mac: None,
            in_order: false,
            wait: PATIENCE,
            timeout: PATIENCE,
            heartbeat: None,
        };
        let device = RemoteDevice::connect(settings, Box::new(Once(Some(Channel::from(ours)))), recorder)?;
        Ok(Self { device: Arc::new(device), stop, thread })
    }

    /// Ends both ends.
    fn end(self) -> Result<(), String> {
        drop(self.device);
        self.stop.signal();
        match self.thread.join() {
            Ok(End::Gone | End::Stopped) => Ok(()),
            Ok(End::Fault(why)) => Err(format!("the back end sent the front end away: {why}")),
            Err(_) => Err("the back end panicked".to_owned()),
        }
    }
}

/// The connection, which cannot be made again.
struct Once(Option<Channel>);

impl Connector for Once {
    fn connect(&mut self) -> Result<Channel, String> {
        self.0.take().ok_or_else(|| "the back end has closed the connection".to_owned())
    }

    fn can_return(&self) -> bool {
        self.0.is_some()
    }
}

/// What the back end's device says goes to the same host as all else.
struct AtHome(Arc<Recorder>);

impl Surroundings for AtHome {
    fn log(&self, level: u8, target: &str, text: &str) {
        gvmm_plugin_api::host::Host::log(&*self.0, level, target, text);
    }

    fn device_failed(&self, reason: &str) {
        self.0.device_failed(reason);
    }

    fn open_console(&self, attachment: &str) -> Result<Console, String> {
        self.0.open_console(attachment)
    }
}
