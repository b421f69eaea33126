"""The prose of RESULTS.md, and the numbers that others published: what comes from no file of results."""

from __future__ import annotations

PUBLISHED = (  # (system, paper on arxiv.org, what it is, Acc@0.5 in percent on umd val, on umd test)
    ("ReSC-large", "2008.01059", "one-stage, recursive", 67.5, 66.6),
    ("TransVG, R101", "2104.08541", "transformer fusion", 68.7, 68.0),
    ("CLIP-VG, B/16", "2305.08685", "frozen CLIP, transformer fusion", 73.2, 72.5),
    ("Dynamic-MDETR", "2209.13959", "dynamic sampling", 74.1, 74.5),
    ("TransVG++", "2206.06619", "language-conditioned ViT", 76.2, 76.3),
    ("HiVG-B", "2404.13400", "hierarchical adaptation of CLIP", 78.3, 78.8),
    ("SimVG-L", "2409.17531", "BEiT-3", 85.7, 86.7),
    ("OneRef-L", "2410.08021", "BEiT-3", 88.1, 89.3),
    ("Pseudo-Q", "2203.08481", "trained on made phrases about RefCOCOg's images", 46.3, 47.4),
    ("CLIP-VG, several sources", "2305.08685", "trained on made phrases about RefCOCOg's images", 56.5, 57.5),
    ("ReCLIP", "2204.05991", "zero-shot: proposals ranked by CLIP", 59.3, 59.0),
    ("Grounding DINO-T", "2401.02361", "zero-shot", 60.4, 59.7),
)

SPLITS = {
    "test": "test",
    "novel": "novel, whose referred objects are of pairs of colour and shape that no other split shows, and "
    "no phrase of another names",
}
RECOLORED = """\
In training a quarter of the images was shown in other colours. Those may show such a pair, also as the
object that a phrase means, but no phrase that goes with them names a colour. What that is worth is among the
ablations (*no images in other colours*)."""

TITLE = """\
# Results

First [photographs](#on-photographs), then [RefScenes](#on-refscenes), the drawn data set of this project;
[what did not work](#what-did-not-work) is of both. *mIoU* is the mean overlap of predicted and true box
(intersection over union, IoU, in [0, 1]), *Acc@0.5* the share of phrases whose box has an IoU of 0.5 or
more."""

IN_SHORT = """\
In short, on [people's phrases](#peoples-phrases), {n} about photographs that no model was trained on:
scores, the 95% interval of Acc@0.5 over images, and the minutes of training."""

SCORES = {"mIoU": "miou", "Acc@0.5": "acc@0.5"}

PHOTOS = """\
## On photographs

Trained on phrases that were made from boxes by rule (`prepare phrases`), and on captions. Not one phrase in
training was written to refer to a box. Two kinds of phrases are asked, and they are never put in one column:
*made* ones about images nobody trained on, and *people's*, which RefCOCOg's annotators wrote about other
photographs. Each run was asked people's phrases once, at the end; what was chosen was chosen on made phrases
of val. Rough trials before the study had been asked the same phrases of people.

`photos/dense-grounder`, which the package ships, learned on two GPUs from later phrases than the other runs
(more from captions, more with two conditions, absent ones of the same kind; 386,281 in train with those about
7,999 [collages](#telling-things-of-one-class-apart)), with all of its text encoder and stronger zooms, and it
looks at its box more closely before it answers. It is asked as it is shipped, in 8 bits, and the same phrases
as the others, those of the first version. Made by

```bash
{commands}
python -m experiments.report_photos --gather runs/photos && python -m experiments.report
```

with `--people` and the folder of people's phrases, and 10.6 as the `--minutes` of the longest runs but those
of later phrases (7.5, and 12.6 of the shipped one)."""

COLLAGES = """\
A caption says what a thing does, but where it is the only one of its class, its name is enough to find it. In
a *collage* two images lie side by side, mostly with captions about a thing of the same class in both, and
only what is said tells which is meant (`prepare phrases --collages`). Three trainings of {minutes} minutes,
one seed, are asked the same: the images of val ({n_val:,} phrases), and collages of them ({n_pairs:,}). Made
by `python -m experiments.photo_collages`."""

PEOPLE = """\
All {n} phrases of people, about {images} photographs. Brackets are 95% intervals by bootstrap over images;
differences are paired, to the **bold** line."""

ON_MADE = """\
{n:,} phrases about the {images} images of test. *Presence AUROC* is how well phrases that fit nothing in
their image are told from those that fit (0.5 is chance). Those are made, too; most name a class that is not
there. On a single image it can be far off: the [README](README.md) shows one. *Minutes* are of training
alone."""

ORACLE = """\
`detector-clip` is trained on no phrase: the package's backbone chooses among all annotated boxes, so it never
has to find one. It was asked the first {looked_at} images only, and its difference is on those. People's
phrases it was not asked: of their images only the boxes that somebody refers to are known."""

PRESENCE = """\
Of each of {n_images} photographs `{checkpoint}` was asked "the CATEGORY", for {n_there:,} categories of COCO
that are there and {n_missing:,} that are not (`python -m experiments.photo_presence`). Presence tells them
apart with an AUROC of **{presence_auroc:.3f}** [{low:.3f}, {high:.3f}], by bootstrap over images. At a
presence of {presence_threshold} it says of {t_acc:.3f} of the former that they are there, and of {n_acc:.3f}
of the latter that they are not."""

SEEN_BY_EYE = """\
Only objects that somebody refers to have boxes in these images; {n_seen_without_box} of the categories that
are there were added by eye (`experiments/photo_categories.json`), and what perhaps is there, or is easily
taken for something that is (a couch for a chair), was not asked."""

BY_KIND = (
    "Acc@0.5 on made phrases of test, by what a phrase says. Most are found of *{best}*, fewest of *{worst}*."
)

ABLATED = """\
One change each, trained for as long as the bold line, one seed where that has several. Differences are
paired."""

PHOTO_BACKBONE = """\
Image and text encoder were put into one space by {minutes:.0f} minutes of contrastive training on an
{device} ({pictures:,} images, {captions:,} captions, {boxes:,} boxes), and take {megabytes:.1f} MB.
Asked about images that were held out; *before* is the two as they were downloaded, not yet in one space."""

MADE = """\
## On RefScenes

All numbers from here on are on RefScenes, the drawn data set of this project, except those of others [at the
end](#refcocog). `clip-rpn-pooled` and `clip-rpn-tokens` are the model `clip-rpn-attention` that attends to
the phrase's one vector or to its words. Made by

```bash
{commands}
python -m experiments.backbones
python -m experiments.report --gather {folders} && python -m experiments.report
```

{made}

Shares are in [0, 1]. Brackets are 95% intervals: the mean over seeds of each expression, bootstrap over
images. They hold what the draw of images does, not what the seed does: that is ± in the column *seeds*,
the standard deviation of the mIoU. Differences are paired: the same expressions, answered by both. **Bold**
is `{flagship}`, which the others are compared with."""

SYSTEMS = """\
*Wrong* is the share of phrases with IoU below 0.5, and *x* that share over the flagship's on the same
phrases: read it for how many times as often a system errs. *Difference* is that of its Acc@0.5 to the
flagship's, *semantic* the cosine between predicted and true crop in our small CLIP, and *R@k* the share of
phrases that one of a system's first k proposals fits: far above Acc@0.5, the boxes are there and the ranking
fails. How long each trained stands below (*minutes*; [why they differ](#what-did-not-work)), with a figure
that compares them at the same minute."""

COST = """\
What a system costs. Runs may have shared a GPU, so *minutes* of training and *pairs/s* (phrases trained on
a second, in the fastest epoch) compare roughly."""

MINUTES = """\
The trainings were not equally long, so compare systems at the same minute below: mIoU on val (never on test)
by minutes of training. Learning rates fall to 0 towards the end of a training, so before its end a line is
somewhat below what a training of just that length would have reached."""

EQUAL = """\
The flagship and the best system of each student project once more, for longer, and alone on an {device}. \
How many images fill the minutes was read off a probe of each on that GPU; it came to {least:.1f} to \
{most:.1f} minutes of training. One seed; the images and the other settings are those of the first tables, \
and the columns are read as there."""

EQUAL_MADE = """\
```bash
{commands}
python -m experiments.report --gather runs/equal --results experiments/equal.pkl
```"""

EQUAL_FAMILIES = """Acc@0.5 on test by family of expressions, with their number:"""

FROZEN = """\
The same systems with their backbones as they were pretrained, on test: *fine-tuned* repeats the mIoU from
above. The frozen ones trained for less time (*minutes* here and above), so the distance between the two
columns is that of trained backbones and of a longer training together. For the flagship *frozen backbones*
among the ablations compares equal trainings."""

FAMILIES = """\
Acc@0.5 on test by family, with the number of expressions: read along a row to see what a system cannot do,
and down a column to see which kind of phrase is hard for all. What does not train (proposals, constant box)
was asked the first {looked_at:,} images only."""

TRAINING_FREE = """\
`detector-clip` learns nothing from phrases: our small CLIP picks one of the proposals. *R@all* is its
ceiling, the share of phrases that any proposal fits. The oracle proposes the annotated boxes, and so
measures CLIP's choice alone; a trained detector, where one is listed, has seen {detected_on:,} of RefScenes'
training images with all their boxes. Both were asked the first {looked_at:,} images of each split."""

BLIND = """\
How far one gets without the image or without the phrase, on test: only what a system scores above these
lines is grounding. The constant box was asked the first {looked_at:,} images."""

ABLATION = """\
One change each, everything else the same, on test. An interval without 0 is more than the draw of images;
a difference no larger than the ± of the seeds may still be chance. A row called *unchanged* is the flagship
trained for as long as those with a change, and then they are compared with it."""

LOSS = """\
The same model trained with other box losses, on test: compare the columns from left to right, since a loss
can find as many objects and yet draw looser boxes."""

CURVE = "mIoU on test by the number of training images: lines that still rise at their ends want more data."

CONFIDENCE = """\
What a score is worth, on test. *ECE* is how far it is from the IoU that it predicts (0 is best). *AURC* is
the mean share wrong when only the surest phrases are answered, over all shares answered: far below *wrong*
means that the score knows which answers are bad. *Presence AUROC* is how well phrases that fit nothing in
their image are told from those that fit (0.5 is chance)."""

SHIPPED = """\
What `Grounder.load("scenes/dense-grounder")` gives without any training, on test. Its matrices are kept in
8 bits: compare it with the run that it is of, the longer training in the first line."""

BACKBONES = """\
Two small networks stand where OpenAI's CLIP and ImageNet's HRNet stand at full size. Here they are as
shipped, before anything is grounded, asked about {solids:,} solids in {scenes:,} test images under the seed
of their pretraining. Shares in [0, 1] with 95% intervals over images (in the line *crop of a description*
over descriptions)."""

CLIP = """\
The CLIP ({parameters:.1f} M parameters) was pretrained on such crops, descriptions and phrases of other
images, at 128 pixels only. It names a crop of a solid by the nearest of *the cube*, *the sphere* ...; it
finds a crop's description (*the metal red cube*) among all, and a crop for a description; and of an image
that is blurred around one of its solids at a time, it finds the one that a phrase refers to. *Chance* is a
blind guess."""

HRNET = """\
The HRNet ({parameters:.1f} M parameters), asked what it was pretrained for: what one linear layer, fitted
anew on as many images of val, reads from a cell of its map that a solid covers, and what it reads from the
same network with random weights. *Chance* is the commonest answer."""

SEARCH = """\
Short trainings on fewer images of another seed, from which the settings of these systems were chosen
([experiments/plan.py](experiments/plan.py)): by the mIoU on their own val, and what concerns unseen pairs on
their own novel. None of these images is in a table above. `clip-rpn-pooled` and `clip-rpn-concat` were not
searched: they have the learning rate of `clip-rpn-tokens`."""

NOT_RUN = """\
The plan ([experiments/plan.py](experiments/plan.py)) also has these; the same command goes on with them:"""

REFCOCOG = """\
## RefCOCOg

**Nothing here was trained on RefCOCOg, or scored on its splits**: neither its photographs nor the weights of
large models were to be had where this page was made, except for the few phrases [above](#peoples-phrases).
With both, these commands measure it ([docs/training.md](docs/training.md) explains them):

```bash
python -m vg_utils prepare refcocog --root data/refcocog
python -m vg_utils train --preset refcocog --model {model} --data data/refcocog --out runs/refcocog
python -m vg_utils evaluate runs/refcocog --data data/refcocog --split test --json test.json
```

Published by others on RefCOCOg, Acc@0.5 in percent on its `umd` partition, as their papers give it and not
reproduced here: read off where a system has to stand. RefScenes is another task, and its numbers cannot be
set beside these; people's phrases above are of this kind, but too few for more than a rough comparison."""
