#!/bin/sh
# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
#
# The Python package with a real vLLM engine on a GPU: `run.sh WHEEL [bench]`. Needs a vLLM that `python3` can import (say
# by PYTHONPATH) and nothing from a network. With "bench", the table of times to the first token too.
set -u
here=$(cd "$(dirname "$0")" && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --no-index --no-deps --target "$site" "$1" || exit 1
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PATH="$site/bin:$PATH" PYTHONUNBUFFERED=1 PYTHONHASHSEED=0
python3 -m pegaflow.doctor
failed=0
for attention in FLASH_ATTN TRITON_ATTN; do for order in NHD HND; do
    if timeout 300 python3 "$here/check.py" $attention $order >"$site/log" 2>&1; then
        grep '^ok' "$site/log"
    else
        failed=$((failed + 1)); echo "FAILED $attention $order"; tail -25 "$site/log"
    fi
done; done
case "${2:-}" in bench)
    timeout 560 python3 "$here/../../bench/engine.py" --shape 8b --tokens 10000 --prompts 12 --output 64 --pool-gib 40 \
        --attention FLASH_ATTN ;;
esac
echo "$failed failed"
[ "$failed" = 0 ]
