#!/usr/bin/env bash
# All tests, on two cores: the unit tests on both, then those in the virtual machine beside the others, which
# include those that boot other kernels.
# usage: everything.sh PYTHON [argument of pytest ...]
set -euo pipefail
python=$1
shift

said=$(mktemp)
vm=
end() {
    [[ -z $vm ]] || kill "$vm" 2>/dev/null || true
    rm -f "$said"
}
trap end EXIT
trap 'exit 130' INT TERM

# Where the arguments leave no test of a room (5), that is no failure.
run() {
    "$python" -m pytest "$@" || [[ $? == 5 ]]
}

kernels=tests/vm/test_kernels.py
result=0
run tests/unit --numprocesses=2 --dist=loadfile "$@" || result=1
# Shown when it is over, or its lines would stand between those of the others.
"$python" -m pytest tests/vm --ignore="$kernels" "$@" >"$said" 2>&1 &
vm=$!
run tests/{e2e,host,kube,package} "$kernels" "$@" || result=1
wait "$vm" || [[ $? == 5 ]] || result=1
vm=
cat "$said"
exit "$result"
