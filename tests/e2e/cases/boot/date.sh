# The guest's clock, read from its RTC at start, is the host's.
guest <<'EOF'
echo "now $(date +%s)"
EOF
before=$(date +%s)
boot
after=$(date +%s)
expect_status 0
now=$(sed -n 's/^now //p' console.log)
# A real-time clock counts whole seconds: up to one is lost when the guest reads it.
[ "$now" -ge $((before - 1)) ] && [ "$now" -le $((after + 1)) ] || fail "the guest says $now; $before to $after here"
