# SIGTERM and SIGINT stop the machine in order and restore the terminal.
for signal in TERM INT; do
    guest <<'EOF'
echo running
sleep 1000
EOF
    terminal 'wait:running' "signal:$signal" --
    grep -q '^@terminal restored' terminal.log
done
