"""Old names of modules and classes, in code, configuration files and checkpoints."""

import importlib
import subprocess
import sys
from types import FunctionType

import pytest
import yaml

from densesiam._aliases import MOVED
from densesiam.cli.registry import build_parsers, command_module

# The public names that each module had before it moved.
NAMES = {
    "densesiam.callbacks": (
        "RunReport ProgressBar SegmentationGrid CheckpointConfig PredictionWriter "
        "loss_names describe_epoch write_json"
    ),
    "densesiam.commands.checkpoints": (
        "keep_checkpoint resolve_checkpoint read_checkpoint check_resumable"
    ),
    "densesiam.commands.console": "Interrupted UsageError interactive first_process say",
    "densesiam.commands.demo": "USAGE CONFIG add_arguments run demo",
    "densesiam.commands.export": (
        "USAGE BackboneFormat SegmenterFormat add_arguments run export_backbone export_whole"
    ),
    "densesiam.commands.fit": "USAGE add_arguments run fit",
    "densesiam.commands.folders": "claim_folder check_writable",
    "densesiam.commands.picie": "USAGE add_arguments run",
    "densesiam.commands.predict": "USAGE add_arguments run predict",
    "densesiam.commands.pretrain": "USAGE add_arguments run",
    "densesiam.commands.probe": "USAGE TASKS add_arguments run",
    "densesiam.commands.scoring": "set_evaluator describe_evaluation score_table",
    "densesiam.commands.supervised": "Task add_tasks",
    "densesiam.commands.trainer": "TrainerOptions TimmSyncBatchNorm build_trainer interruptible",
    "densesiam.commands.training": "add_config_arguments Built build training_run",
    "densesiam.commands.transfer": "USAGE TASKS add_arguments run",
    "densesiam.commands.validate": ("USAGE Head add_arguments add_scoring_arguments run validate"),
    "densesiam.data.cityscapes": "CityscapesImages Cityscapes27",
    "densesiam.data.classes": "ClassTable known_table LabelDecoder",
    "densesiam.data.classified": "ClassifiedImages ClassifiedData",
    "densesiam.data.coco": "CURATED Split CocoImages CocoStuff27",
    "densesiam.data.crops": "LabelledCrops LabelledData",
    "densesiam.data.draws": "Draw seeded_generator uniform chance",
    "densesiam.data.evaluation": "Evaluation NATIVE to_source",
    "densesiam.data.files": "EXTENSIONS ImageReadError find_images read_image read_label",
    "densesiam.data.frame": (
        "Box IMAGENET_MEAN IMAGENET_STD Frame check_frame resample to_normalised to_image nearest"
    ),
    "densesiam.data.imagenet": "ImageNetImages",
    "densesiam.data.images": "ImageFiles Images SamplePhotos sample_paths PredictionImages",
    "densesiam.data.labelled": "LabelledFiles LabelledImages",
    "densesiam.data.layout": "find_folder misplaced draw_tree read_names listing",
    "densesiam.data.loading": "LoadingModule",
    "densesiam.data.module": "TwoViewData SegmentationData",
    "densesiam.data.objects": (
        "Objects ObjectImages CocoObjects VocObjects DetectionSamples DetectionData"
    ),
    "densesiam.data.official": "OfficialSegmentationViews",
    "densesiam.data.photometric": "Photometric MOCO_V2",
    "densesiam.data.pretraining": "PretrainingData",
    "densesiam.data.sampler": "TrainingSampler EvaluationSampler",
    "densesiam.data.supervised": "SupervisedData",
    "densesiam.data.unlabelled": "ImageList FolderImages named",
    "densesiam.data.views": "Views SegmentationViews TwoCrops output_size place pack",
    "densesiam.data.voc": "VocImages VocSegmentation",
    "densesiam.evaluation.images": "ImageCounts ImageScore rank_images",
    "densesiam.evaluation.probes": (
        "LinearSegmentationProbe LinearClassificationProbe NearestNeighbourProbe"
    ),
    "densesiam.evaluation.report": "Example ValidationReport read_matching",
    "densesiam.evaluation.segmentation": "SegmentationScores SupervisedSegmentation",
    "densesiam.evaluation.supervised": "Supervised score_table",
    "densesiam.methods.assignment": "label_counts assignment_statistics",
    "densesiam.methods.averages": "weighted_mean",
    "densesiam.methods.losses.averages": "weighted_mean",
    "densesiam.methods.clustering": "MiniBatchKMeans assign",
    "densesiam.methods.early": "early_gradients gradient_scale",
    "densesiam.methods.method": "Method",
    "densesiam.methods.region": "RegionSim RegionStart region_contrast",
    "densesiam.monitor": (
        "Kind normalised_std singular_values mean_explained_share effective_rank_share "
        "feature_metrics assignment_metrics loss_metrics balanced_floor gradient_norms "
        "Limit LIMITS diagnose PARTS CollapseMonitor sample_vectors"
    ),
    "densesiam.page": (
        "Html Cell Column html join paragraph section details facts cards swatch legend "
        "picture figure table write_page"
    ),
    "densesiam.transfer.segmentation": "FCNHead SegmentationTransfer",
    "densesiam.visualize": "palette colorize overlay legend heat_map contact_sheet",
}


def test_no_old_module_is_forgotten():
    assert set(NAMES) == {old for old in MOVED if old != "densesiam.commands"} | {
        "densesiam.data.views"
    }


@pytest.mark.parametrize("module", NAMES)
def test_old_names_are_the_same_objects(module):
    old = importlib.import_module(module)
    for name in NAMES[module].split():
        found = getattr(old, name)
        if isinstance(found, type | FunctionType):
            assert found.__module__ not in MOVED
            assert getattr(importlib.import_module(found.__module__), found.__name__) is found


def test_what_never_was_is_still_an_error():
    with pytest.raises(ImportError, match="Unknown"):
        from densesiam.callbacks import Unknown  # noqa: F401  it is to fail
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("densesiam.commands.unknown")


def test_commands_are_found_as_modules():
    found = {}
    exec("from densesiam.commands import fit", found)
    assert found["fit"].run is command_module("fit").run


@pytest.mark.parametrize(
    ("command", "setting", "class_path", "arguments"),
    [
        ("fit", "views", "densesiam.data.views.SegmentationViews", {"size": 32}),
        ("fit", "views", "densesiam.data.official.OfficialSegmentationViews", {}),
        ("fit", "train", "densesiam.data.unlabelled.FolderImages", {"root": "photos"}),
        ("fit", "train", "densesiam.data.coco.CocoImages", {"root": "coco"}),
        ("fit", "val", "densesiam.data.cityscapes.Cityscapes27", {"root": "cityscapes"}),
        ("fit", "val", "densesiam.data.voc.VocSegmentation", {"root": "voc"}),
        ("pretrain", "train", "densesiam.data.imagenet.ImageNetImages", {"root": "imagenet"}),
        ("pretrain", "views", "densesiam.data.views.TwoCrops", {"size": 32}),
    ],
)
def test_class_paths_of_old_configs_are_understood(
    command, setting, class_path, arguments, tmp_path
):
    config = tmp_path / "old.yaml"
    content = {"data": {setting: {"class_path": class_path, "init_args": arguments}}}
    config.write_text(yaml.safe_dump(content))
    parser, _ = build_parsers()
    found = parser.parse_args([command, "--config", str(config)])[command].data[setting]
    module, _, name = class_path.rpartition(".")
    new_module, _, new_name = found.class_path.rpartition(".")
    new = getattr(importlib.import_module(new_module), new_name)
    assert new is getattr(importlib.import_module(module), name)


def test_an_old_name_imports_nothing_until_it_is_used():
    code = (
        "import sys, densesiam.callbacks, densesiam.commands.fit\n"
        "print('lightning' in sys.modules, 'densesiam.cli' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
