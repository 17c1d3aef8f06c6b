# Without any --device the guest has a console and a clock; with --no-defaults it has neither.
guest <<'EOF'
cat /sys/bus/amba/devices/*/uevent
EOF
boot
expect_status 0
expect_console 'DRIVER=uart-pl011'
expect_console 'DRIVER=rtc-pl031'
boot --no-defaults
expect_status 0
[ ! -s console.log ] || fail "a machine without a console has written to it"
