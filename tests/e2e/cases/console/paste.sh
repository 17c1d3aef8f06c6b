# Text pasted into the console arrives whole.
tr -dc 'a-z0-9 \n' </dev/urandom | head -c 32768 >text
limit=200
guest <<'EOF'
stty raw -echo
echo "ready"
head -c 32768 | sha256sum
EOF
terminal 'wait:ready' 'paste:text' --
expect_status 0
expect_console "^$(sha256sum <text | cut -d' ' -f1)"
