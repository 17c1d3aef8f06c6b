# A kernel that begins on the UART and goes on on the virtio console prints each of its messages once.
cmdline='earlycon console=hvc0 panic=-1'
guest <<'END'
echo "a message after the change" >/dev/kmsg
dmesg | sed 's/^/told: /'
END
boot
expect_status 0
sed -n 's/^told: //p' console.log | sort >told
grep '^\[' console.log | grep -v 'reboot: Power down' | sort >shown
grep -q 'a message after the change' told || fail "the guest has no log"
[ -z "$(comm -23 told shown)" ] || fail "lost: $(comm -23 told shown)"
# Linux tells both consoles of the change.
twice=$(comm -13 told shown | grep -Ev 'console \[hvc0\] enabled|bootconsole \[pl11\] disabled' || true)
[ -z "$twice" ] || fail "printed twice: $twice"
