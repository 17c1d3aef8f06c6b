use super::*;

fn machine(script: &str, count: u32) -> Scripted {
    let script: Script = serde_json::from_str(script).unwrap();
    let boot = BootState { pc: 0x8000_0000, x: BTreeMap::from([(0, 0x8800_0000)]) };
    Scripted::build(&script, count, boot, BTreeSet::from([1]), Arc::default()).unwrap()
}

fn one(steps: &str) -> Scripted {
    machine(&format!(r#"{{"vcpus": [[{steps}]]}}"#), 1)
}

fn run(machine: &Scripted, resume: Resume) -> Stop {
    machine.run(0, resume, &mut Blocked::new())
}

const POWER_OFF: Stop = Stop::Ended(ExitStatus { status: 2, exit_type: 1 });
const FAILED: Stop = Stop::Ended(ExitStatus { status: 2, exit_type: HYP_ERROR });

#[test]
fn accesses_are_handed_out_and_their_outcome_checked() {
    let steps = r#"{"read": {"addr": 16, "len": 2, "expect": 7}}, {"write": {"addr": 32, "value": 1, "exits": true}}, "power-off""#;
    let good = one(steps);
    assert_eq!(run(&good, Resume::Go), Stop::Access(Access { addr: 16, len: 2, write: None }));
    assert_eq!(run(&good, Resume::Data(7)), Stop::Access(Access { addr: 32, len: 4, write: Some(1) }));
    assert_eq!(run(&good, Resume::Done(true)), POWER_OFF);

    let wrong = one(steps);
    run(&wrong, Resume::Go);
    assert_eq!(run(&wrong, Resume::Data(8)), FAILED);
}

#[test]
fn an_access_can_be_expected_to_abort() {
    let steps = |aborts| format!(r#"{{"read": {{"addr": 16, "aborts": {aborts}}}}}, "power-off""#);
    for (aborts, end) in [(true, POWER_OFF), (false, FAILED)] {
        let machine = one(&steps(aborts));
        run(&machine, Resume::Go);
        assert_eq!(run(&machine, Resume::Abort), end);
    }
}

#[test]
fn a_read_can_be_repeated_until_its_value_comes() {
    let machine = one(r#"{"read": {"addr": 16, "expect": 1, "mask": 1, "until": true}}, "power-off""#);
    let access = Stop::Access(Access { addr: 16, len: 4, write: None });
    assert_eq!(run(&machine, Resume::Go), access);
    assert_eq!(run(&machine, Resume::Data(2)), access);
    assert_eq!(run(&machine, Resume::Data(3)), POWER_OFF);
}

#[test]
fn steps_are_repeated_and_nested() {
    let machine = one(r#"{"repeat": {"times": 2, "steps": [
            {"repeat": {"times": 2, "steps": [{"write": {"addr": 1, "value": 1}}]}},
            {"write": {"addr": 2, "value": 2}}
        ]}}, "reset""#);
    let mut seen = Vec::new();
    let mut resume = Resume::Go;
    while let Stop::Access(access) = run(&machine, resume) {
        seen.push(access.addr);
        resume = Resume::Done(true);
    }
    assert_eq!(seen, [1, 1, 2, 1, 1, 2]);
}

#[test]
fn an_interrupt_reaches_a_bound_label_only() {
    let machine = one(r#"{"wait-irq": {"label": 1}}, {"wait-irq": {"label": 2, "timeout-ms": 1}}"#);
    for label in [1, 2] {
        let irqfd = Irqfd { event: Arc::new(Event::new().unwrap()), level: false };
        machine.bind_irqfd(label, &irqfd).unwrap();
        irqfd.event.signal();
    }
    // Label 2 has no doorbell in the tree, so its interrupt never comes.
    assert_eq!(run(&machine, Resume::Go), FAILED);
}

#[test]
fn a_secondary_waits_until_it_is_turned_on() {
    let machine = machine(r#"{"vcpus": [[{"cpu-on": 1}, "hang"], ["power-off"]]}"#, 2);
    std::thread::scope(|scope| {
        let secondary = scope.spawn(|| {
            let mut signals = Blocked::new();
            loop {
                match machine.run(1, Resume::Go, &mut signals) {
                    Stop::Woken => {}
                    stop => return stop,
                }
            }
        });
        let boot = scope.spawn(|| machine.run(0, Resume::Go, &mut Blocked::new()));
        assert_eq!(secondary.join().unwrap(), POWER_OFF);
        machine.wake();
        assert_eq!(boot.join().unwrap(), Stop::Woken);
    });
}

#[test]
fn page_faults_come_as_often_as_asked() {
    let machine =
        one(r#"{"page-fault": {"addr": "0x90000000", "errno": "ENOMEM", "times": 2}}, "power-off""#);
    let fault = Stop::PageFault(0x9000_0000, Errno::ENOMEM);
    assert_eq!(run(&machine, Resume::Go), fault);
    assert_eq!(run(&machine, Resume::Go), fault);
    assert_eq!(run(&machine, Resume::Go), POWER_OFF);
}

#[test]
fn boot_registers_are_compared() {
    let right = one(r#"{"expect-boot": {"pc": "0x80000000", "x": {"0": "0x88000000"}}}, "power-off""#);
    assert_eq!(run(&right, Resume::Go), POWER_OFF);
    let wrong = one(r#"{"expect-boot": {"x": {"1": 1}}}, "power-off""#);
    assert_eq!(run(&wrong, Resume::Go), FAILED);
}
